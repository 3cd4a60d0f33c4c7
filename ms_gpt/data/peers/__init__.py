"""Programs that read data with another library, each in a process of its own."""
