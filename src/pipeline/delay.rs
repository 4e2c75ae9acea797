//! A decoder whose every forward pass takes longer by a known share, so that a study of the bench gate knows what it has to find. In: a decoder and
//! a percentage. Out: a decoder with the same outputs. The time is spent inside the pass: observers and trials count it as the pass's own.

use crate::decoder::{Batch, Capacity, DecodeError, Decoder, Opened, Output, Slot};
use crate::model::ModelSpec;
use crate::units::TokenId;
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

    fn forward(&mut self, batch: &Batch, outputs: &mut Vec<Output>) -> Result<(), DecodeError> {
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

    fn forget_prefixes(&mut self) {
        self.decoder.forget_prefixes();
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
    use crate::decoder::fake::FakeDecoder;
    use crate::decoder::{Segment, Want};
    use std::sync::{Arc, Mutex};

    /// What the clock shows, one reading after the other.
    fn clock(readings: &[u64]) -> (Clock, Arc<Mutex<Vec<u64>>>) {
        let left = Arc::new(Mutex::new(readings.iter().rev().copied().collect::<Vec<_>>()));
        let taken = left.clone();
        let next = move || Duration::from_micros(taken.lock().unwrap().pop().expect("the clock is not read more often"));
        (Box::new(next), left)
    }

    fn fake() -> Box<FakeDecoder> {
        Box::new(FakeDecoder::new(9, Capacity { slots: 1, positions: 64, rows: 8 }))
    }

    /// One pass over a prompt: what the decoder answers.
    fn pass(decoder: &mut dyn Decoder) -> Vec<Output> {
        let slot = decoder.open(&[1, 2, 3], 4, false).unwrap().slot;
        let segment = Segment { slot, start: 0, tokens: 0..3, want: Want::Logits, padding_rows: 0, padded_context: 0 };
        let mut outputs = Vec::new();
        decoder.forward(&Batch { tokens: vec![1, 2, 3], segments: vec![segment] }, &mut outputs).unwrap();
        decoder.close(slot);
        outputs
    }

    #[test]
    fn a_pass_takes_just_the_asked_percentage_longer_and_answers_the_same() {
        // A pass of 200 µs from 1000 on, then one of 50 µs: over only when 220 and 55 µs have passed, never a reading later.
        let (now, left) = clock(&[1000, 1200, 1201, 1219, 1220, 5000, 5050, 5054, 5055]);
        let mut delayed = Delayed { decoder: fake(), percent: 10, now };
        let expected = pass(fake().as_mut());
        assert_eq!(pass(&mut delayed), expected);
        assert_eq!(left.lock().unwrap().len(), 4, "the first pass ends at its 220th microsecond");
        assert_eq!(pass(&mut delayed), expected);
        assert!(left.lock().unwrap().is_empty(), "the second ends at its 55th");
    }

    #[test]
    fn the_real_clock_shows_a_pass_of_half_again_its_time() {
        /// Passes of about 20 ms.
        struct Slow(Box<FakeDecoder>);
        impl Decoder for Slow {
            fn spec(&self) -> &ModelSpec {
                self.0.spec()
            }
            fn capacity(&self) -> Capacity {
                self.0.capacity()
            }
            fn open(&mut self, prompt: &[TokenId], positions: usize, share: bool) -> Option<Opened> {
                self.0.open(prompt, positions, share)
            }
            fn forward(&mut self, batch: &Batch, outputs: &mut Vec<Output>) -> Result<(), DecodeError> {
                std::thread::sleep(Duration::from_millis(20));
                self.0.forward(batch, outputs)
            }
            fn close(&mut self, slot: Slot) {
                self.0.close(slot)
            }
            fn forget_prefixes(&mut self) {}
            fn used_positions(&self) -> (usize, usize) {
                self.0.used_positions()
            }
            fn kernels(&self) -> Vec<String> {
                self.0.kernels()
            }
        }
        let begin = Instant::now();
        pass(&mut Delayed::new(Box::new(Slow(fake())), 50));
        // No upper bound: a busy machine may take any time.
        assert!(begin.elapsed() >= Duration::from_millis(30), "{:?}", begin.elapsed());
    }
}
