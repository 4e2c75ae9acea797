//! The phases of a forward pass as safe functions: each checks its slices, cuts the work into units and runs them on the team's workers.
//! In: slices, panels, pages. Out: the same. This is the boundary between safe code above and the raw views of `phases.rs` below.
#![allow(unsafe_code)]

mod attention;
mod buffers;
mod elementwise;
mod products;
mod state;

pub use attention::{Attending, Context, HeadsBy, Rotation, attention_units};
pub use buffers::{Activations, KvArena, Rows, StateArena};
pub use elementwise::NormWeights;
pub use products::{Group, ScoreRequest, Scores, Scoring};
pub use state::Delta;

use super::attention::View;
use super::dispatch::KernelSet;
use super::panels::{COLUMNS, Panels};
use super::phases::Grid;
use super::pool::{PerWorker, Pool};
use super::scratch::Scratch;
use super::views::Matrix;

/// The product of two sizes. Panics where it is no size.
fn times(a: usize, b: usize) -> usize {
    a.checked_mul(b).unwrap_or_else(|| panic!("{a} times {b} is more than memory can hold"))
}

/// A width up to whole panels. Panics where that is no size.
fn whole(width: usize) -> usize {
    width
        .checked_next_multiple_of(COLUMNS)
        .unwrap_or_else(|| panic!("rows of {width} are more than memory can hold"))
}

/// Null for none.
fn pointer<T>(v: Option<&[T]>) -> *const T {
    v.map_or(std::ptr::null(), <[T]>::as_ptr)
}

/// A bias of `n` outputs as the kernels take it. Panics if it is not padded to 16 with zeros.
fn bias_of(bias: Option<&[f32]>, n: usize) -> *const f32 {
    if let Some(bias) = bias {
        assert!(bias.len() == whole(n), "a bias of {} values for {n} outputs", bias.len());
        assert!(bias[n..].iter().all(|b| *b == 0.0), "a bias padded with zeros");
    }
    pointer(bias)
}

/// 0 for none.
fn cap_of(cap: Option<f32>) -> f32 {
    assert!(cap.is_none_or(|c| c > 0.0 && c.is_finite()), "a soft cap of {cap:?}");
    cap.unwrap_or(0.0)
}

/// Buffers that phases use again.
#[derive(Default)]
struct Buffers {
    /// (page, position in it) that rows write.
    places: Vec<(u32, u32)>,
    /// (row, head) pairs that attention units compute.
    seen: Vec<bool>,
    /// 0, 1, 2 ..: the pages of a copy.
    identity: Vec<u32>,
    views: Vec<View>,
}

// SAFETY: the pointers in `views` are those of one call's arguments; they are followed during that call alone.
unsafe impl Send for Buffers {}

/// A team of worker threads (OpenMP's word), their scratch memory and a kernel set.
pub struct Team {
    pool: Pool,
    scratch: PerWorker<Scratch>,
    set: KernelSet,
    /// Round every operation's output to bf16.
    round: bool,
    buffers: Buffers,
}

fn matrix(p: &Panels) -> Matrix {
    let panel_bytes = super::panels::panel_bytes(p.format, p.k);
    Matrix { format: p.format, w: p.data.as_ptr(), n: p.n, k: p.k, panel_bytes }
}

/// Lets workers share raw views. SAFETY of use: each `ops` function says why its units do not collide.
struct Shared<T>(T);
// SAFETY: see `Shared`.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn get(&self) -> &T {
        &self.0
    }
}

impl Team {
    /// `threads` workers (the caller is one of them).
    pub fn new(
        set: KernelSet,
        threads: usize,
        head_dim: usize,
        round_bf16: bool,
    ) -> std::io::Result<Team> {
        let pool = Pool::new(threads)?;
        let scratch = PerWorker::new(pool.threads(), || Scratch::new(head_dim));
        Ok(Team { pool, scratch, set, round: round_bf16, buffers: Buffers::default() })
    }

    /// The kernel set.
    pub fn set(&self) -> KernelSet {
        self.set
    }

    /// Why the team must not be used any more.
    pub fn broken(&self) -> Option<String> {
        self.pool.broken()
    }

    /// Bytes of scratch memory of `threads` workers; saturates.
    pub fn scratch_bytes(threads: usize, head_dim: usize, rows: usize) -> usize {
        Scratch::bytes(head_dim, rows.min(ROW_GROUP) * MAX_PANELS * COLUMNS).saturating_mul(threads)
    }

    /// Runs `work(unit)` on the workers: phases that need no kernel.
    pub fn each(&mut self, units: usize, work: impl Fn(usize) + Sync) {
        self.pool.run(units, |_, unit| work(unit));
    }

    /// Runs `work(index, chunk)` on chunks of `data`, in parallel.
    pub fn chunks<T: Send>(
        &mut self,
        data: &mut [T],
        chunk: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let (len, start) = (data.len(), Shared(data.as_mut_ptr()));
        self.pool.run(len.div_ceil(chunk), |_, unit| {
            let from = unit * chunk;
            let count = chunk.min(len - from);
            // SAFETY: chunks of different units do not overlap, all lie within `data`, which is borrowed for the whole run.
            work(unit, unsafe { std::slice::from_raw_parts_mut(start.get().add(from), count) });
        });
    }

    /// Runs `fill(r, row)` on the first `rows` rows (without their padding, `width` long), in parallel if there are many.
    pub fn fill(
        &mut self,
        x: &mut Rows,
        rows: usize,
        width: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        assert!(rows <= x.count() && width <= x.stride);
        let (stride, per_unit) = (x.stride, self.rows_per_unit(rows));
        self.chunks(&mut x.data[..rows * stride], stride * per_unit, |unit, chunk| {
            for (i, row) in chunk.chunks_exact_mut(stride).enumerate() {
                fill(unit * per_unit + i, &mut row[..width]);
                // A phase may have left something there, of a row that was not finite.
                row[width..].fill(0.0);
            }
        });
    }

    fn rows_per_unit(&self, rows: usize) -> usize {
        // One or two rows are done before another worker would have woken.
        if rows <= 2 { rows.max(1) } else { rows.div_ceil(4 * self.pool.threads()) }
    }

    /// Cuts a product of `rows` rows and `panels` panels; units hold multiples of `multiple` panels.
    fn grid(&mut self, rows: usize, panels: usize, multiple: usize) -> Grid {
        self.grid_among(rows, multiple, panels * row_groups(rows).1)
    }

    /// The same for one of several products that have `all` panels together, those of each group of rows counted.
    fn grid_among(&mut self, rows: usize, multiple: usize, all: usize) -> Grid {
        let (group, row_groups) = row_groups(rows);
        let wanted = all.div_ceil(6 * self.pool.threads());
        let grid = Grid {
            panels: (wanted / multiple * multiple).clamp(multiple, MAX_PANELS),
            rows: group,
            row_groups,
        };
        for scratch in self.scratch.iter_mut() {
            scratch.tile(grid.rows * grid.panels * COLUMNS);
        }
        grid
    }
}

/// Rows of a group of a unit's rows, and how many groups `rows` rows make.
fn row_groups(rows: usize) -> (usize, usize) {
    let groups = rows.div_ceil(ROW_GROUP).max(1);
    // Whole tiles in every group but the last.
    let group = rows.div_ceil(groups).next_multiple_of(16).clamp(1, rows.max(1));
    (group, rows.div_ceil(group).max(1))
}

/// Rows of one unit at most: their activations stay in L2.
const ROW_GROUP: usize = 128;
/// Panels of one unit at most.
const MAX_PANELS: usize = 8;
