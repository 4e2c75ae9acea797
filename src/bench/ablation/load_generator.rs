//! The queue under load: closed-loop clients, each of which sends its next prompt when its last one is answered. In: a pipeline, prompts,
//! a number of clients. Out: throughput and the latency of every request.

use super::result::Clients;
use super::trial::BenchError;
use crate::pipeline::{Control, Ended, Input, Order, Pipeline, Prompt};
use std::ops::ControlFlow;
use std::sync::mpsc;

/// Has `clients` clients send `requests` requests in all, taking the prompts in turn.
pub fn run(
    pipeline: &mut Pipeline,
    queue: bool,
    clients: usize,
    requests: usize,
    prompts: &[Prompt],
    control: &Control,
) -> Result<Clients, BenchError> {
    pipeline.reset();
    let (send, receive) = mpsc::channel::<Input>();
    let nth = |i: usize| {
        Input::Prompt(Prompt { id: i.to_string(), ..prompts[i % prompts.len()].clone() }, ())
    };
    let mut sent = clients.min(requests);
    for i in 0..sent {
        let _ = send.send(nth(i));
    }
    // The source ends when the sender is dropped: after the last request has been sent.
    let mut send = (sent < requests).then_some(send);
    let (mut latency_ms, mut ttft_ms) =
        (Vec::with_capacity(requests), Vec::with_capacity(requests));
    let report =
        pipeline.run(receive.into_iter(), Order::Finished, control, &mut |answer, ()| {
            latency_ms.push(answer.latency_ms);
            ttft_ms.push(answer.ttft_ms);
            if let Some(sender) = &send {
                let _ = sender.send(nth(sent));
                sent += 1;
                if sent == requests {
                    send = None;
                }
            }
            ControlFlow::Continue(())
        })?;
    match report.ended {
        Ended::Complete if report.errors == 0 => {}
        Ended::Complete => {
            return Err(BenchError::Workload(format!(
                "{} of {requests} requests failed",
                report.errors
            )));
        }
        Ended::SourceFailed(why) => return Err(BenchError::Workload(why.message)),
        Ended::Stopped => return Err(BenchError::Interrupted),
        Ended::Deadline => return Err(BenchError::TimeOver),
    }
    Ok(Clients {
        clients,
        queue,
        requests: report.answers,
        seconds: report.wall_s,
        generated_tokens: report.generated_tokens,
        latency_ms,
        ttft_ms,
    })
}
