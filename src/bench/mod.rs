//! Workload, plan, trials, statistics, result, gate. In: a model and a plan. Out: a result as plain data. It formats nothing.

pub mod comparison;
pub mod quality;
pub mod speed;
pub mod statistics;
pub mod verdict;
