//! Load to look at: groups of processes with TCP connections, memory and page cache.
