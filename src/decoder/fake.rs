//! A decoder without weights, for tests: scores are a hash of the whole context, so any mix-up of sequences, positions or shared
//! pages changes the tokens. In and out: as [`super::Decoder`]. It checks the caller's side of the protocol on every call and can be
//! told to say given tokens, to fail for one sequence, or to panic.

use super::page_table::{PAGE, PageTable};
use super::{Batch, Capacity, DecodeError, Decoder, LogitsOutput, LogitsRequest, Opened, Slot};
use crate::model::{ModelSpec, Plain};
use crate::units::TokenId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// See the module's head.
pub struct FakeDecoder {
    spec: ModelSpec,
    capacity: Capacity,
    table: PageTable,
    /// What stands in each position of each page: the stand-in for keys and values.
    cells: Vec<Option<TokenId>>,
    /// By slot: the prompt, and every position that has run.
    open: Vec<Option<Sequence>>,
    script: HashMap<Vec<TokenId>, Vec<TokenId>>,
    not_finite: Option<TokenId>,
    panics: Option<TokenId>,
    log: Arc<Mutex<Vec<Batch>>>,
}

struct Sequence {
    prompt: Vec<TokenId>,
    room: usize,
    /// Positions that have run or were taken over.
    done: usize,
}

impl FakeDecoder {
    /// A fake with this vocabulary size and capacity.
    pub fn new(vocab: usize, capacity: Capacity) -> FakeDecoder {
        let sizes = Plain {
            layers: 1,
            hidden: 2,
            ffn: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocab,
            context: capacity.positions,
            theta: 1e4,
            epsilon: 1e-5,
        };
        let spec = ModelSpec { architecture: "fake".into(), ..ModelSpec::plain(sizes) };
        let pages = capacity.positions / PAGE;
        FakeDecoder {
            spec,
            capacity,
            table: PageTable::new(pages, capacity.slots),
            cells: vec![None; pages * PAGE],
            open: (0..capacity.slots).map(|_| None).collect(),
            script: HashMap::new(),
            not_finite: None,
            panics: None,
            log: Arc::default(),
        }
    }

    /// After `prompt` the most probable tokens are these, one after the other.
    pub fn say(mut self, prompt: &[TokenId], tokens: &[TokenId]) -> Self {
        self.script.insert(prompt.to_vec(), tokens.to_vec());
        self
    }

    /// A row whose own token is this one gives scores that are not finite.
    pub fn not_finite_after(mut self, token: TokenId) -> Self {
        self.not_finite = Some(token);
        self
    }

    /// A forward pass with this token among its rows panics.
    pub fn panic_at(mut self, token: TokenId) -> Self {
        self.panics = Some(token);
        self
    }

    /// Every batch that was run with success, in order.
    pub fn log(&self) -> Arc<Mutex<Vec<Batch>>> {
        self.log.clone()
    }

    /// The scores after this context.
    pub fn scores(&self, context: &[TokenId]) -> Vec<f32> {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for &token in context {
            hash = mix(hash ^ u64::from(token));
        }
        // Steps of 1/16 make ties common, so that their rule is tested too.
        let mut scores: Vec<f32> = (0..self.spec.vocab as u64)
            .map(|id| (mix(hash ^ (id << 32)) % 128) as f32 / 16.0)
            .collect();
        for (prompt, tokens) in &self.script {
            let said =
                context.strip_prefix(prompt.as_slice()).filter(|said| tokens.starts_with(said));
            if let Some(&next) = said.and_then(|said| tokens.get(said.len())) {
                scores[next as usize] = 100.0;
            }
        }
        scores
    }

    fn cell(&self, slot: Slot, position: usize) -> usize {
        self.table.pages(slot)[position / PAGE] as usize * PAGE + position % PAGE
    }

    fn check(&self, batch: &Batch) -> Result<(), String> {
        let mut rows = 0;
        let mut next = 0;
        let mut seen = Vec::new();
        for segment in &batch.segments {
            let len = segment.tokens.len();
            rows += len + segment.padding_rows;
            if segment.tokens.start != next {
                return Err(format!(
                    "segment tokens start at {}, not at {next}",
                    segment.tokens.start
                ));
            }
            next = segment.tokens.end;
            if len == 0 && (segment.padding_rows == 0 || segment.logits != LogitsRequest::Nothing) {
                return Err("a segment without tokens is padding and wants nothing".into());
            }
            if seen.contains(&segment.slot) {
                return Err(format!("{:?} twice in one batch", segment.slot));
            }
            seen.push(segment.slot);
            let Some(sequence) = self.open.get(segment.slot.0).and_then(Option::as_ref) else {
                return Err(format!("{:?} is not open", segment.slot));
            };
            if self.table.orphaned(segment.slot) {
                return Err(format!("{:?} counts on pages that nobody wrote", segment.slot));
            }
            if len > 0 && segment.start != sequence.done {
                return Err(format!(
                    "{:?} starts at {}, expected {}",
                    segment.slot, segment.start, sequence.done
                ));
            }
            if segment.start + len > sequence.room {
                return Err(format!(
                    "{:?} needs {} positions and was opened for {}",
                    segment.slot,
                    segment.start + len,
                    sequence.room
                ));
            }
            for (i, &token) in batch.tokens[segment.tokens.clone()].iter().enumerate() {
                if sequence.prompt.get(segment.start + i).is_some_and(|&p| p != token) {
                    return Err(format!(
                        "{:?} runs token {token} at {}: not its prompt",
                        segment.slot,
                        segment.start + i
                    ));
                }
            }
        }
        match () {
            _ if next != batch.tokens.len() => {
                Err(format!("{} tokens, {next} of them in segments", batch.tokens.len()))
            }
            _ if rows > self.capacity.rows => {
                Err(format!("{rows} rows, room for {}", self.capacity.rows))
            }
            _ if rows == 0 => Err("an empty batch".into()),
            _ => Ok(()),
        }
    }
}

/// The finalizer of splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Decoder for FakeDecoder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened> {
        self.open_for_forks(prompt, positions, 0, share)
    }

    fn fork(&mut self, parent: Slot, at: usize, positions: usize) -> Option<Slot> {
        let (slot, copy) = self.table.fork(parent, at, positions)?;
        if let Some((from, to)) = copy {
            let cells = from as usize * PAGE..(from as usize + 1) * PAGE;
            self.cells.copy_within(cells, to as usize * PAGE);
        }
        for position in at..positions {
            let cell = self.cell(slot, position);
            self.cells[cell] = None;
        }
        let prompt = self.open[parent.0].as_ref().expect("an open slot").prompt.clone();
        let prompt = prompt[..prompt.len().min(at)].to_vec();
        self.open.resize_with(self.open.len().max(slot.0 + 1), || None);
        self.open[slot.0] = Some(Sequence { prompt, room: positions, done: at });
        Some(slot)
    }

    fn open_for_forks(
        &mut self,
        prompt: &[TokenId],
        positions: usize,
        spare: usize,
        share: bool,
    ) -> Option<Opened> {
        let opened = self.table.open_for_forks(prompt, positions, spare, share)?;
        self.open[opened.slot.0] =
            Some(Sequence { prompt: prompt.to_vec(), room: positions, done: opened.reused });
        for position in opened.reused..positions {
            let cell = self.cell(opened.slot, position);
            self.cells[cell] = None;
        }
        Some(opened)
    }

    fn forward(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError> {
        self.check(batch).map_err(DecodeError::Broken)?;
        assert!(
            self.panics.is_none_or(|token| !batch.tokens.contains(&token)),
            "the fake decoder was told to panic"
        );
        for segment in &batch.segments {
            for (i, &token) in batch.tokens[segment.tokens.clone()].iter().enumerate() {
                let cell = self.cell(segment.slot, segment.start + i);
                self.cells[cell] = Some(token);
            }
            let last = batch.tokens[segment.tokens.clone()].last().copied();
            let scored = match segment.logits {
                LogitsRequest::Nothing => &[],
                LogitsRequest::AllLogits => &batch.tokens[segment.tokens.clone()],
                _ => last.as_slice(),
            };
            if self.not_finite.is_some_and(|token| scored.contains(&token)) {
                return Err(DecodeError::NotFinite(segment.slot));
            }
        }
        outputs.clear();
        for segment in &batch.segments {
            let end = segment.start + segment.tokens.len();
            let rows = if segment.logits == LogitsRequest::AllLogits {
                segment.start + 1..end + 1
            } else {
                end..end + 1
            };
            if segment.logits == LogitsRequest::Nothing {
                outputs.push(LogitsOutput::Nothing);
                continue;
            }
            let context: Option<Vec<TokenId>> =
                (0..end).map(|p| self.cells[self.cell(segment.slot, p)]).collect();
            let Some(context) = context else {
                return Err(DecodeError::Broken(format!(
                    "{:?} reads a position that nobody wrote",
                    segment.slot
                )));
            };
            let sequence = self.open[segment.slot.0].as_ref().expect("checked");
            let common = sequence.prompt.len().min(end);
            if context[..common] != sequence.prompt[..common] {
                return Err(DecodeError::Broken(format!(
                    "{:?} reads another prompt's pages",
                    segment.slot
                )));
            }
            let scores: Vec<Vec<f32>> = rows.map(|end| self.scores(&context[..end])).collect();
            let mut ranked: Vec<(TokenId, f32)> =
                scores[0].iter().enumerate().map(|(id, &s)| (id as TokenId, s)).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            outputs.push(match segment.logits {
                LogitsRequest::Nothing => LogitsOutput::Nothing,
                LogitsRequest::Argmax => LogitsOutput::Argmax(ranked[0].0, ranked[0].1),
                LogitsRequest::TopK(k) => LogitsOutput::TopK(ranked.into_iter().take(k).collect()),
                LogitsRequest::Logits | LogitsRequest::AllLogits => {
                    LogitsOutput::Logits(scores.concat())
                }
                LogitsRequest::LogitsAndArgmax => {
                    LogitsOutput::LogitsAndArgmax(scores.concat(), ranked[0].0)
                }
            });
        }
        for segment in &batch.segments {
            let sequence = self.open[segment.slot.0].as_mut().expect("checked");
            sequence.done = sequence.done.max(segment.start + segment.tokens.len());
            self.table.written(segment.slot, sequence.done);
        }
        self.log.lock().expect("no panic while held").push(batch.clone());
        Ok(())
    }

    fn close(&mut self, slot: Slot) {
        self.open[slot.0] = None;
        self.table.close(slot);
    }

    fn clear_prefix_cache(&mut self) {
        self.table.forget();
    }

    fn used_positions(&self) -> (usize, usize) {
        self.table.used()
    }

    fn kernels(&self) -> Vec<String> {
        vec!["fake".into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Segment;

    fn segment(slot: Slot, start: usize, tokens: std::ops::Range<usize>) -> Segment {
        Segment {
            slot,
            start,
            tokens,
            logits: LogitsRequest::Argmax,
            padding_rows: 0,
            padded_context: 0,
        }
    }

    #[test]
    fn it_refuses_what_breaks_the_protocol() {
        let mut fake = FakeDecoder::new(10, Capacity { slots: 2, positions: 64, rows: 4 });
        let slot = fake.open(&[1, 2, 3], 5, false).unwrap().slot;
        let mut run = |tokens: &[TokenId], segments: Vec<Segment>| {
            fake.forward(&Batch { tokens: tokens.to_vec(), segments }, &mut Vec::new())
                .map_err(|e| e.to_string())
        };
        for (tokens, start, word) in [
            (vec![2], 1, "expected 0"),
            (vec![7], 0, "not its prompt"),
            (vec![], 0, "without tokens"),
        ] {
            let error = run(&tokens, vec![segment(slot, start, 0..tokens.len())]).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert!(run(&[1], vec![segment(Slot(1), 0, 0..1)]).unwrap_err().contains("not open"));
        assert!(run(&[1, 2, 3], vec![segment(slot, 0, 0..3)]).is_ok());
        assert!(
            run(&[4, 5, 6], vec![segment(slot, 3, 0..3)]).unwrap_err().contains("opened for 5")
        );
    }

    #[test]
    fn a_shared_beginning_gives_the_scores_of_the_whole_prompt() {
        let prompt: Vec<TokenId> = (0..40).map(|i| i % 9).collect();
        let mut fake = FakeDecoder::new(10, Capacity { slots: 2, positions: 160, rows: 64 });
        let a = fake.open(&prompt, 41, true).unwrap();
        let b = fake.open(&prompt, 41, true).unwrap();
        assert_eq!((a.reused, b.reused), (0, 32));
        let batch = Batch {
            tokens: [&prompt[..], &prompt[32..]].concat(),
            segments: vec![segment(a.slot, 0, 0..40), segment(b.slot, 32, 40..48)],
        };
        let mut outputs = Vec::new();
        fake.forward(&batch, &mut outputs).unwrap();
        assert_eq!(outputs[0], outputs[1]);
    }
}
