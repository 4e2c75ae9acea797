//! Facts about this machine: CPU features, caches, usable cores, memory, load. In: the operating system. Out: plain data. It measures nothing.
