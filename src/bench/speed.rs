//! Speed of the bare forward pass with fixed token ids: prefill, decode of one sequence, decode of a batch. In: a decoder and counts.
//! Out: seconds. No stop, no cache, no shared prefix, no sampling beyond the argmax; no statistics.

use crate::decoder::{Batch, DecodeError, Decoder, LogitsOutput, LogitsRequest, Segment, Slot};
use crate::units::TokenId;
use std::time::Instant;

/// A token id that depends on sequence and position only: the same for every setting, spread over the vocabulary.
fn fixed_id(vocab: usize, sequence: usize, position: usize) -> TokenId {
    let mixed =
        (sequence as u64 * 0x9e37_79b9 + position as u64 + 1).wrapping_mul(0x2545_f491_4f6c_dd1d);
    ((mixed >> 33) % vocab as u64) as TokenId
}

fn fixed_ids(vocab: usize, sequence: usize, count: usize) -> Vec<TokenId> {
    (0..count).map(|p| fixed_id(vocab, sequence, p)).collect()
}

fn open(
    decoder: &mut dyn Decoder,
    prompt: &[TokenId],
    positions: usize,
) -> Result<Slot, DecodeError> {
    let opened = decoder.open(prompt, positions, false);
    Ok(opened
        .ok_or_else(|| {
            DecodeError::Broken(format!("no room for {positions} positions; raise --kv-memory"))
        })?
        .slot)
}

/// Runs a prompt in chunks of what the decoder takes; scores of the last row.
fn run_prompt(
    decoder: &mut dyn Decoder,
    slot: Slot,
    prompt: &[TokenId],
    outputs: &mut Vec<LogitsOutput>,
) -> Result<(), DecodeError> {
    let rows = decoder.capacity().rows.max(1);
    for start in (0..prompt.len()).step_by(rows) {
        let end = (start + rows).min(prompt.len());
        let logits =
            if end == prompt.len() { LogitsRequest::Logits } else { LogitsRequest::Nothing };
        let segment = Segment {
            slot,
            start,
            tokens: 0..end - start,
            logits,
            padding_rows: 0,
            padded_context: 0,
        };
        decoder.forward(
            &Batch { tokens: prompt[start..end].to_vec(), segments: vec![segment] },
            outputs,
        )?;
    }
    Ok(())
}

/// Seconds for the prefill of `tokens` tokens, scores for the last one.
pub fn prefill(decoder: &mut dyn Decoder, tokens: usize) -> Result<f64, DecodeError> {
    let ids = fixed_ids(decoder.spec().vocab, 0, tokens);
    let slot = open(decoder, &ids, tokens)?;
    let mut outputs = Vec::new();
    let start = Instant::now();
    let done = run_prompt(decoder, slot, &ids, &mut outputs);
    let seconds = start.elapsed().as_secs_f64();
    decoder.close(slot);
    done.map(|()| seconds)
}

/// Seconds for `tokens` steps of one sequence from an empty context.
pub fn decode_one(decoder: &mut dyn Decoder, tokens: usize) -> Result<f64, DecodeError> {
    decode_batch(decoder, 1, 0, tokens)
}

/// Seconds for `tokens` steps of `batch` sequences together, after prompts of `prompt` tokens whose prefill is not timed.
pub fn decode_batch(
    decoder: &mut dyn Decoder,
    batch: usize,
    prompt: usize,
    tokens: usize,
) -> Result<f64, DecodeError> {
    let vocab = decoder.spec().vocab;
    let mut slots = Vec::new();
    let mut outputs = Vec::new();
    let mut done = Ok(());
    for sequence in 0..batch {
        let ids = fixed_ids(vocab, sequence, prompt.max(1));
        match open(decoder, &ids, prompt + tokens) {
            Ok(slot) => {
                slots.push(slot);
                done = run_prompt(decoder, slot, &ids[..prompt], &mut outputs);
            }
            Err(error) => done = Err(error),
        }
        if done.is_err() {
            break;
        }
    }
    let start = Instant::now();
    if done.is_ok() {
        done = (prompt..prompt + tokens).try_for_each(|position| {
            let batch = Batch {
                tokens: (0..batch).map(|s| fixed_id(vocab, s, position)).collect(),
                segments: slots
                    .iter()
                    .enumerate()
                    .map(|(i, &slot)| Segment {
                        slot,
                        start: position,
                        tokens: i..i + 1,
                        logits: LogitsRequest::Argmax,
                        padding_rows: 0,
                        padded_context: 0,
                    })
                    .collect(),
            };
            decoder.forward(&batch, &mut outputs)
        });
    }
    let seconds = start.elapsed().as_secs_f64();
    for slot in slots {
        decoder.close(slot);
    }
    done.map(|()| seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Capacity;
    use crate::decoder::fake::FakeDecoder;

    fn fake(slots: usize, positions: usize, rows: usize) -> FakeDecoder {
        FakeDecoder::new(17, Capacity { slots, positions, rows })
    }

    #[test]
    fn every_measure_runs_the_tokens_it_says_and_leaves_nothing_open() {
        let mut decoder = fake(4, 1024, 48);
        let log = decoder.log();
        let rows = |log: &std::sync::Mutex<Vec<Batch>>| {
            let mut log = log.lock().unwrap();
            let found: Vec<(usize, usize)> =
                log.iter().map(|b| (b.tokens.len(), b.segments.len())).collect();
            log.clear();
            found
        };
        assert!(prefill(&mut decoder, 100).unwrap() >= 0.0);
        assert_eq!(rows(&log), [(48, 1), (48, 1), (4, 1)]);
        decode_one(&mut decoder, 5).unwrap();
        assert_eq!(rows(&log), [(1, 1); 5]);
        decode_batch(&mut decoder, 3, 50, 2).unwrap();
        assert_eq!(rows(&log), [(48, 1), (2, 1), (48, 1), (2, 1), (48, 1), (2, 1), (3, 3), (3, 3)]);
        assert_eq!(decoder.used_positions().0, 0);
    }

    #[test]
    fn too_little_room_is_an_error_and_leaves_nothing_open() {
        let mut decoder = fake(2, 256, 16);
        assert!(decode_batch(&mut decoder, 3, 8, 8).is_err());
        assert_eq!(decoder.used_positions().0, 0);
        assert!(prefill(&mut decoder, 16).is_ok());
    }

    #[test]
    fn ids_are_fixed_within_the_vocabulary_and_differ_between_sequences() {
        let ids = |s| fixed_ids(300, s, 64);
        assert_eq!(ids(0), ids(0));
        assert_ne!(ids(0), ids(1));
        assert!(ids(5).iter().all(|id| *id < 300));
        let distinct: std::collections::HashSet<_> = ids(2).into_iter().collect();
        assert!(distinct.len() > 40, "{}", distinct.len());
    }
}
