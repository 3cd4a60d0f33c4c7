"""Programs that run other libraries, each in a process of its own: nothing else in the package imports those."""
