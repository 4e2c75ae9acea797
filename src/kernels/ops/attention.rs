//! Queries, keys and values, their way into pages, and attention over those.
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments)]

use super::super::attention::{AttentionArgs, AttentionUnit, View};
use super::super::pages::{PAGE, Row};
use super::super::panels::Panels;
use super::super::phases::{HeadsArgs, Projection, QkvArgs};
use super::super::scratch::ATTENTION_ROWS;
use super::buffers::{Activations, KvArena, Rows};
use super::elementwise::{NormWeights, UNNORMED};
use super::{Buffers, Shared, Team, bias_of, cap_of, matrix, pointer, times, whole};

/// Where attention finds a segment's keys and values in one layer.
pub enum Context<'a> {
    /// These pages of the arena.
    Pages(&'a [u32]),
    /// A copy made by [`KvArena::copy_layer`].
    Copy(&'a [u8]),
}

/// Rotary embedding, softmax scale and rounding of a q/k/v phase.
pub struct Rotation<'a> {
    /// Of each position `[cos; head_dim]`, then `[-sin, +sin, ..; head_dim]`.
    pub table: &'a [f32],
    /// What queries are multiplied with.
    pub scale: f32,
}

/// How queries and keys that were computed apart become what attention reads.
pub struct HeadsBy<'a> {
    /// Norms of each query head and of each key head.
    pub norms: Option<[NormWeights<'a>; 2]>,
    /// The norms come after the rotation.
    pub rotated_first: bool,
    /// As [`Rotation::table`]; `None` for no positions.
    pub table: Option<&'a [f32]>,
    /// What queries are multiplied with.
    pub scale: f32,
    /// One more factor of each row's queries.
    pub row_scales: Option<&'a [f32]>,
}

/// What is particular about a layer's attention.
#[derive(Clone, Copy)]
pub struct Attending<'a> {
    /// Query heads.
    pub heads: usize,
    /// A query at position q sees the keys above q - window.
    pub window: Option<usize>,
    /// Scores become cap * tanh(score / cap).
    pub cap: Option<f32>,
    /// Of each head, one more score in the softmax's denominator.
    pub sinks: Option<&'a [f32]>,
}

impl Attending<'_> {
    /// All positions, no cap, no sinks.
    pub fn plain(heads: usize) -> Attending<'static> {
        Attending { heads, window: None, cap: None, sinks: None }
    }
}

/// No two rows write the same place.
fn distinct_places(rows: &[Row], places: &mut Vec<(u32, u32)>) -> bool {
    places.clear();
    places.extend(
        rows.iter().filter(|r| r.page != Row::NOWHERE).map(|r| (r.page, r.position % PAGE as u32)),
    );
    places.sort_unstable();
    places.windows(2).all(|w| w[0] != w[1])
}

/// No two units compute the same head of the same row. The units were checked to lie within `rows` and `heads`.
fn distinct_units(
    units: &[AttentionUnit],
    rows: usize,
    heads: usize,
    seen: &mut Vec<bool>,
) -> bool {
    seen.clear();
    seen.resize(times(rows, heads), false);
    units.iter().all(|u| {
        (u.row as usize..u.row as usize + u.rows as usize).all(|row| {
            (u.head as usize..u.head as usize + u.heads as usize)
                .all(|head| !std::mem::replace(&mut seen[row * heads + head], true))
        })
    })
}

/// Cuts a segment's rows (`first..first + rows` of the batch) into attention units.
pub fn attention_units(
    segment: usize,
    first: usize,
    rows: usize,
    padded_context: usize,
    heads: usize,
    kv_heads: usize,
    heads_apart: bool,
    out: &mut Vec<AttentionUnit>,
) {
    let group = heads / kv_heads;
    let together = if heads_apart { 1 } else { group.min(ATTENTION_ROWS) };
    let most_rows = ATTENTION_ROWS / together;
    for head in (0..kv_heads).flat_map(|h| (h * group..(h + 1) * group).step_by(together)) {
        let heads = together.min((head / group + 1) * group - head);
        for row in (0..rows).step_by(most_rows) {
            out.push(AttentionUnit {
                segment: segment as u32,
                row: (first + row) as u32,
                rows: most_rows.min(rows - row) as u32,
                head: head as u32,
                heads: heads as u32,
                padded_context: padded_context as u32,
            });
        }
    }
}

impl Team {
    /// From rows of queries, keys and values: queries normed, rotated, scaled in place; keys likewise and values into the pages that
    /// `rows` name.
    pub fn heads(
        &mut self,
        q: &mut Rows,
        k: &Rows,
        v: &Rows,
        rows: &[Row],
        by: &HeadsBy,
        kv: &mut KvArena,
        layer: usize,
        heads: usize,
    ) {
        let (shape, kv_heads) = (kv.shape.head(layer), kv.shape.layers()[layer].kv_heads);
        let hd = shape.head_dim;
        assert!(hd > 0 && kv_heads > 0, "layer {layer} keeps no keys and values");
        assert!(
            q.stride == whole(times(heads, hd))
                && k.stride == whole(times(kv_heads, hd))
                && v.stride == k.stride
        );
        assert!([q.count(), k.count(), v.count()].iter().all(|c| *c >= rows.len()));
        assert!(by.row_scales.is_none_or(|s| s.len() == rows.len()), "a scale for each row");
        self.check_places(rows, kv.pages, by.table.map(|t| t.len() / times(2, hd)));
        for scratch in self.scratch.iter_mut() {
            scratch.fit(hd);
        }
        let norms = by.norms.as_ref().map_or([UNNORMED; 2], |norms| {
            [norms[0].by(hd, self.round), norms[1].by(hd, self.round)]
        });
        let args = Shared(HeadsArgs {
            q: q.data.as_mut_ptr(),
            q_stride: q.stride,
            heads,
            kv_heads,
            k: k.data.as_ptr(),
            k_stride: k.stride,
            v: v.data.as_ptr(),
            v_stride: v.stride,
            norms,
            rotated_first: by.rotated_first,
            rotation: by.table.map_or(std::ptr::null(), <[f32]>::as_ptr),
            scale: by.scale,
            row_scale: by.row_scales.map_or(std::ptr::null(), <[f32]>::as_ptr),
            rows: rows.len(),
            rows_per_unit: self.rows_per_unit(rows.len()),
            row: rows.as_ptr(),
            shape,
            kv: kv.layer_mut(layer),
            page_bytes: kv.shape.page_bytes(),
            round: self.round,
        });
        let (run, scratch) = (self.set.table().heads, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own rows of `q` and, of each row, the one place in the pages that no other row
        // has (`check_places`); sizes were checked above, the scratch has room for a head (`fit`), scratch by worker number.
        self.pool.run(rows.len().div_ceil(args.get().rows_per_unit), |worker, unit| unsafe {
            run(args.get(), scratch.get(worker), unit)
        });
    }

    /// Queries (rotated, scaled) into `q`, keys (rotated) and values into the pages that `rows` name; each with its bias, padded to 16.
    pub fn qkv(
        &mut self,
        parts: [&Panels; 3],
        biases: [Option<&[f32]>; 3],
        input: &Activations,
        rows: &[Row],
        rotation: &Rotation,
        kv: &mut KvArena,
        layer: usize,
        q: &mut Rows,
    ) {
        let (shape, kv_heads) = (kv.shape.head(layer), kv.shape.layers()[layer].kv_heads);
        let hd = shape.head_dim;
        assert!(hd > 0 && kv_heads > 0, "layer {layer} keeps no keys and values");
        assert!(
            parts[1].n == times(kv_heads, hd)
                && parts[2].n == parts[1].n
                && parts[0].n.is_multiple_of(hd)
        );
        assert!(q.count() >= rows.len() && q.stride == whole(parts[0].n));
        self.check_places(rows, kv.pages, Some(rotation.table.len() / times(2, hd)));
        let inputs = parts.map(|p| input.input(rows.len(), p));
        let panels = parts.iter().map(|p| p.count()).sum();
        let grid = self.grid(rows.len(), panels, 2);
        let units: usize =
            parts.iter().map(|p| p.count().div_ceil(grid.panels) * grid.row_groups).sum();
        let args = Shared(QkvArgs {
            parts: [
                (Projection::Query, matrix(parts[0]), bias_of(biases[0], parts[0].n)),
                (Projection::Key, matrix(parts[1]), bias_of(biases[1], parts[1].n)),
                (Projection::Value, matrix(parts[2]), bias_of(biases[2], parts[2].n)),
            ],
            input: inputs[0],
            grid,
            rows: rows.len(),
            row: rows.as_ptr(),
            rotation: rotation.table.as_ptr(),
            shape,
            kv: kv.layer_mut(layer),
            page_bytes: kv.shape.page_bytes(),
            q: q.data.as_mut_ptr(),
            q_stride: q.stride,
            scale: rotation.scale,
            round: self.round,
        });
        let (run, scratch) = (self.set.table().qkv, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own columns of its own rows of `q`, or, of each row, its own columns of the one
        // place in the pages that no other row has (`distinct_places`); sizes were checked above; scratch by worker number.
        self.pool.run(units, |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
    }

    /// That rows have their rotations and pages, and that no two write the same place.
    fn check_places(&mut self, rows: &[Row], pages: usize, positions: Option<usize>) {
        for row in rows {
            assert!(
                positions.is_none_or(|p| (row.position as usize) < p),
                "rotation of position {}",
                row.position
            );
            assert!(
                row.page == Row::NOWHERE || (row.page as usize) < pages,
                "page {} of {pages}",
                row.page
            );
        }
        assert!(
            distinct_places(rows, &mut self.buffers.places),
            "two rows write the same place of a page"
        );
    }

    /// Attention of all `units` (see [`attention_units`]) into `out`; quantized there too if `out` has blocks.
    pub fn attention(
        &mut self,
        units: &[AttentionUnit],
        rows: &[Row],
        contexts: &[Context],
        kv: &KvArena,
        layer: usize,
        by: Attending,
        q: &Rows,
        out: &mut Activations,
    ) {
        let shape = kv.shape.head(layer);
        let (hd, kv_heads) = (shape.head_dim, kv.shape.layers()[layer].kv_heads);
        assert!(hd > 0 && kv_heads > 0, "layer {layer} keeps no keys and values");
        let heads = by.heads;
        assert!(heads > 0 && heads.is_multiple_of(kv_heads) && q.count() >= rows.len());
        assert!(q.stride == whole(times(heads, hd)));
        assert!(by.window != Some(0), "a window of at least one position");
        assert!(
            by.sinks.is_none_or(|s| s.len() >= heads),
            "a sink for each head (padding may follow)"
        );
        for scratch in self.scratch.iter_mut() {
            scratch.fit(hd);
        }
        let (group, layer_bytes) = (heads / kv_heads, kv.shape.layer_bytes(layer));
        let Buffers { seen, identity, views, .. } = &mut self.buffers;
        let copied = |c: &Context| if let Context::Copy(b) = c { b.len() / layer_bytes } else { 0 };
        let most = contexts.iter().map(copied).max().unwrap_or(0);
        if identity.len() < most {
            identity
                .extend(identity.len() as u32..u32::try_from(most).expect("fewer than 2^32 pages"));
        }
        views.clear();
        views.extend(contexts.iter().map(|context| match context {
            Context::Pages(pages) => {
                assert!(pages.iter().all(|&p| (p as usize) < kv.pages), "a page past the arena");
                let page_bytes = kv.shape.page_bytes();
                View {
                    base: kv.layer(layer),
                    page_bytes,
                    pages: pages.as_ptr(),
                    count: pages.len(),
                }
            }
            Context::Copy(bytes) => View {
                base: bytes.as_ptr(),
                page_bytes: layer_bytes,
                pages: identity.as_ptr(),
                count: copied(context),
            },
        }));
        for u in units {
            let (first, last) = (u.row as usize, u.row as usize + u.rows as usize);
            let (head, end) = (u.head as usize, u.head as usize + u.heads as usize);
            assert!(first < last && last <= rows.len() && head < end && end <= heads);
            assert!(
                times(last - first, end - head) <= ATTENTION_ROWS,
                "a unit of {} rows x {} heads",
                u.rows,
                u.heads
            );
            assert!(head / group == (end - 1) / group, "heads of one kv head");
            assert!(
                rows[first..last].is_sorted_by_key(|r| r.position),
                "positions that do not decrease"
            );
            assert!(
                (rows[last - 1].position as usize) < times(views[u.segment as usize].count, PAGE),
                "attention past the pages"
            );
        }
        assert!(distinct_units(units, rows.len(), heads, seen), "two units compute the same");
        let to_q = out.has_blocks() && shape.head_dim.is_multiple_of(32);
        let args = Shared(AttentionArgs {
            units: units.as_ptr(),
            count: units.len(),
            views: views.as_ptr(),
            row: rows.as_ptr(),
            shape,
            group,
            q: q.data.as_ptr(),
            q_stride: q.stride,
            out: out.sink(rows.len(), heads * shape.head_dim),
            to_q,
            window: by.window.unwrap_or(usize::MAX),
            cap: cap_of(by.cap),
            sinks: pointer(by.sinks),
            round: self.round,
        });
        let (run, scratch) = (self.set.table().attention, &self.scratch);
        // SAFETY: features as in `norm`; a unit writes its own heads of its own rows of `out` (`distinct_units`; whole blocks of 32 when
        // quantizing); rows, heads, pages were checked above; scratch by worker number.
        self.pool
            .run(units.len(), |worker, unit| unsafe { run(args.get(), scratch.get(worker), unit) });
        if out.has_blocks() && !to_q {
            self.quantize(out, rows.len());
        }
    }
}
