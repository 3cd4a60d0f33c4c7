"""Beside other libraries: the same work done by ours and by theirs."""
