//! Workload, plan, trials, statistics, result, gate. In: a model and a plan. Out: a result as plain data. It formats nothing.

pub mod answers;
pub mod children;
pub mod clients;
pub mod comparison;
#[cfg(test)]
pub mod example;
pub mod figures;
pub mod forward;
pub mod gate;
pub mod lineup;
pub mod plan;
pub mod quality;
pub mod result;
pub mod rows;
pub mod run;
pub mod speed;
pub mod statistics;
pub mod trial;
pub mod verdict;
pub mod workload;
#[cfg(feature = "candle")]
pub mod yardstick;
#[cfg(not(feature = "candle"))]
#[path = "yardstick_absent.rs"]
pub mod yardstick;
