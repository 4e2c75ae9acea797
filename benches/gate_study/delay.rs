//! A decoder whose every forward pass takes longer by a known share, so that a study of the bench gate knows what it has to find. In: a decoder and
//! a percentage. Out: a decoder with the same outputs. The time is spent inside the pass: observers and trials count it as the pass's own.

use llmopt::decoder::{Batch, Capacity, DecodeError, Decoder, LogitsOutput, Opened, Slot};
use llmopt::model::ModelSpec;
use llmopt::units::TokenId;
use std::time::{Duration, Instant};

/// A clock: time since some moment.
type Clock = Box<dyn FnMut() -> Duration + Send>;

/// See the module's head.
pub struct Delayed {
    decoder: Box<dyn Decoder>,
    percent: u32,
    now: Clock,
}

impl Delayed {
    /// Every forward pass takes `percent` % longer.
    pub fn new(decoder: Box<dyn Decoder>, percent: u32) -> Delayed {
        let begin = Instant::now();
        Delayed { decoder, percent, now: Box::new(move || begin.elapsed()) }
    }
}

impl Decoder for Delayed {
    fn spec(&self) -> &ModelSpec {
        self.decoder.spec()
    }

    fn capacity(&self) -> Capacity {
        self.decoder.capacity()
    }

    fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened> {
        self.decoder.open(prompt, positions, share)
    }

    fn open_for_forks(
        &mut self,
        prompt: &[TokenId],
        positions: usize,
        spare: usize,
        share: bool,
    ) -> Option<Opened> {
        self.decoder.open_for_forks(prompt, positions, spare, share)
    }

    fn fork(&mut self, parent: Slot, at: usize, positions: usize) -> Option<Slot> {
        self.decoder.fork(parent, at, positions)
    }

    fn forward(
        &mut self,
        batch: &Batch,
        outputs: &mut Vec<LogitsOutput>,
    ) -> Result<(), DecodeError> {
        let begin = (self.now)();
        let result = self.decoder.forward(batch, outputs);
        let end = (self.now)();
        let until = end + (end - begin) * self.percent / 100;
        // Awake like the pass itself: a sleeping thread would wake late and let the processor clock down.
        while (self.now)() < until {
            std::hint::spin_loop();
        }
        result
    }

    fn close(&mut self, slot: Slot) {
        self.decoder.close(slot);
    }

    fn clear_prefix_cache(&mut self) {
        self.decoder.clear_prefix_cache();
    }

    fn used_positions(&self) -> (usize, usize) {
        self.decoder.used_positions()
    }

    fn kernels(&self) -> Vec<String> {
        self.decoder.kernels()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmopt::decoder::{LogitsRequest, Segment};
    use llmopt::model::Plain;
    use std::sync::{Arc, Mutex};

    /// A decoder whose passes take a while and answer nothing.
    struct Slow(ModelSpec, Duration);

    impl Decoder for Slow {
        fn spec(&self) -> &ModelSpec {
            &self.0
        }
        fn capacity(&self) -> Capacity {
            Capacity { slots: 1, positions: 64, rows: 8 }
        }
        fn open(&mut self, _: &[TokenId], _: usize, _: bool) -> Option<Opened> {
            None
        }
        fn forward(
            &mut self,
            batch: &Batch,
            outputs: &mut Vec<LogitsOutput>,
        ) -> Result<(), DecodeError> {
            std::thread::sleep(self.1);
            outputs.extend(batch.segments.iter().map(|_| LogitsOutput::Nothing));
            Ok(())
        }
        fn close(&mut self, _: Slot) {}
        fn clear_prefix_cache(&mut self) {}
        fn used_positions(&self) -> (usize, usize) {
            (0, 0)
        }
        fn kernels(&self) -> Vec<String> {
            Vec::new()
        }
    }

    fn slow(passes: Duration) -> Box<dyn Decoder> {
        let sizes = Plain {
            layers: 1,
            hidden: 16,
            ffn: 16,
            heads: 1,
            kv_heads: 1,
            head_dim: 16,
            vocab: 9,
            context: 64,
            theta: 1e4,
            epsilon: 1e-5,
        };
        Box::new(Slow(ModelSpec::plain(sizes), passes))
    }

    /// What the clock shows, one reading after the other.
    fn clock(readings: &[u64]) -> (Clock, Arc<Mutex<Vec<u64>>>) {
        let left = Arc::new(Mutex::new(readings.iter().rev().copied().collect::<Vec<_>>()));
        let taken = left.clone();
        let next = move || {
            Duration::from_micros(
                taken.lock().unwrap().pop().expect("the clock is not read more often"),
            )
        };
        (Box::new(next), left)
    }

    fn pass(decoder: &mut dyn Decoder) -> Vec<LogitsOutput> {
        let segment = Segment {
            slot: Slot(0),
            start: 0,
            tokens: 0..3,
            logits: LogitsRequest::Nothing,
            padding_rows: 0,
            padded_context: 0,
        };
        let mut outputs = Vec::new();
        decoder
            .forward(&Batch { tokens: vec![1, 2, 3], segments: vec![segment] }, &mut outputs)
            .unwrap();
        outputs
    }

    #[test]
    fn a_pass_takes_just_the_asked_percentage_longer_and_answers_the_same() {
        // A pass of 200 µs from 1000 on, then one of 50 µs: over only when 220 and 55 µs have passed, never a reading later.
        let (now, left) = clock(&[1000, 1200, 1201, 1219, 1220, 5000, 5050, 5054, 5055]);
        let mut delayed = Delayed { decoder: slow(Duration::ZERO), percent: 10, now };
        let expected = pass(slow(Duration::ZERO).as_mut());
        assert_eq!(pass(&mut delayed), expected);
        assert_eq!(left.lock().unwrap().len(), 4, "the first pass ends at its 220th microsecond");
        assert_eq!(pass(&mut delayed), expected);
        assert!(left.lock().unwrap().is_empty(), "the second ends at its 55th");
    }

    #[test]
    fn the_real_clock_shows_a_pass_of_half_again_its_time() {
        let begin = Instant::now();
        pass(&mut Delayed::new(slow(Duration::from_millis(20)), 50));
        // No upper bound: a busy machine may take any time.
        assert!(begin.elapsed() >= Duration::from_millis(30), "{:?}", begin.elapsed());
    }
}
