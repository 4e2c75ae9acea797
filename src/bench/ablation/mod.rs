//! `llmopt bench`: what each optimization gains, by switching it on alone, off alone and in order. In: a model, a workload and a plan.
//! Out: a [`result::BenchResult`], and what `analysis` and `gate` make of it. It formats nothing.

pub mod analysis;
pub mod answers;
#[cfg(feature = "candle")]
pub mod candle_baseline;
#[cfg(not(feature = "candle"))]
#[path = "candle_baseline_absent.rs"]
pub mod candle_baseline;
pub mod gate;
pub mod load_generator;
pub mod plan;
pub mod result;
pub mod run;
pub mod subprocess;
#[cfg(test)]
pub mod test_data;
pub mod trial;
