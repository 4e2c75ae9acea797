//! Measured limits (read bandwidth, FMA peak) and the bytes and FLOPs of a model's step: the share of the limit.
