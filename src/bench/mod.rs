//! Measuring, in two wings: `ablation` (what each optimization gains) and `compare` (settings side by side). Here stands what both use
//! (statistics, the workload, the speed of bare forward passes) and, above both, the difference of recorded results. It formats nothing.

pub mod speed;
pub mod statistics;
pub mod workload;

pub mod ablation;
pub mod compare;

pub mod result_diff;
