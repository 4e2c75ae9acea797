//! Pages of keys and values: their shape, layer by layer, and the one way to write into them. A page holds 16 positions of all layers,
//! one after the other; of each layer and kv head, keys `[head_dim][16]` and values `[16][head_dim up to 16]`. In int8, keys are followed by
//! `[head_dim / 16][16]` steps (f16) and values by `[16][head_dim / 16]`.
#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, clippy::too_many_arguments, clippy::needless_range_loop)]

use super::isa::Isa;

/// Positions of a page of keys and values.
pub const PAGE: usize = 16;

/// A row of the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Its absolute position in its sequence.
    pub position: u32,
    /// The page that takes its key and value; [`Row::NOWHERE`] for a padding row, which leaves nothing behind.
    pub page: u32,
}

impl Row {
    /// No page.
    pub const NOWHERE: u32 = u32::MAX;
}

/// How keys and values are held. Each has one numeric path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KvElement {
    /// IEEE single precision.
    F32,
    /// IEEE half precision, nearest even; what does not fit becomes infinite and is noticed.
    F16,
    /// int8 with an f16 step for each 16 values of a head, round-half-even(x / step); only heads whose width is a multiple of 16.
    #[allow(non_camel_case_types)]
    Q8_0,
}

impl KvElement {
    /// All, in the order help shows them.
    pub const ALL: [KvElement; 3] = [KvElement::F32, KvElement::F16, KvElement::Q8_0];

    /// Bytes of 16 values.
    pub fn bytes_of_16(self) -> usize {
        match self {
            KvElement::F32 => 64,
            KvElement::F16 => 32,
            KvElement::Q8_0 => 18,
        }
    }

    /// Whether heads of this width can be held so.
    pub fn holds(self, head_dim: usize) -> bool {
        self != KvElement::Q8_0 || head_dim.is_multiple_of(16)
    }

    /// As typed after `--kv-dtype`.
    pub fn name(self) -> &'static str {
        match self {
            KvElement::F32 => "f32",
            KvElement::F16 => "f16",
            KvElement::Q8_0 => "q8_0",
        }
    }
}

/// How sixteen values of a page are read and written.
pub(crate) trait Element<S: Isa> {
    const SIZE: usize;
    unsafe fn load(p: *const u8, index: usize) -> S::F;
    unsafe fn store(p: *mut u8, index: usize, v: S::F);
}

pub(crate) struct F32;
pub(crate) struct F16;

impl<S: Isa> Element<S> for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load(p: *const u8, index: usize) -> S::F {
        unsafe { S::load((p as *const f32).add(index)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, index: usize, v: S::F) {
        unsafe { S::store((p as *mut f32).add(index), v) }
    }
}

impl<S: Isa> Element<S> for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load(p: *const u8, index: usize) -> S::F {
        unsafe { S::load_f16((p as *const u16).add(index)) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, index: usize, v: S::F) {
        unsafe { S::store_f16((p as *mut u16).add(index), v) }
    }
}

/// Key/value heads of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Key/value heads; 0 for a layer that keeps nothing.
    pub kv_heads: usize,
    /// Width of a head, of keys and of values.
    pub head_dim: usize,
}

/// Shape of the keys and values of a model. Sizes that no address space holds saturate: no arena of such a shape can be made.
#[derive(Clone, Debug, PartialEq)]
pub struct KvShape {
    element: KvElement,
    layers: Vec<KvLayer>,
    /// Where each layer begins in a page.
    offsets: Vec<usize>,
    page_bytes: usize,
}

impl KvShape {
    /// One layer after the other.
    pub fn new(layers: Vec<KvLayer>, element: KvElement) -> KvShape {
        let mut page_bytes = 0usize;
        let mut offsets = Vec::with_capacity(layers.len());
        for layer in &layers {
            offsets.push(page_bytes);
            page_bytes = page_bytes
                .saturating_add(layer.kv_heads.saturating_mul(head_bytes(layer.head_dim, element)));
        }
        KvShape { element, layers, offsets, page_bytes }
    }

    /// `layers` layers of one shape.
    pub fn uniform(layers: usize, kv_heads: usize, head_dim: usize, element: KvElement) -> KvShape {
        KvShape::new(vec![KvLayer { kv_heads, head_dim }; layers], element)
    }

    /// How values are held.
    pub fn element(&self) -> KvElement {
        self.element
    }

    /// The layers.
    pub fn layers(&self) -> &[KvLayer] {
        &self.layers
    }

    /// Bytes of a layer's share of a page.
    pub fn layer_bytes(&self, layer: usize) -> usize {
        let layer = self.layers[layer];
        layer.kv_heads.saturating_mul(head_bytes(layer.head_dim, self.element))
    }

    /// Where a layer's share of a page begins.
    pub fn layer_offset(&self, layer: usize) -> usize {
        self.offsets[layer]
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// The widest head of a layer.
    pub fn widest_head(&self) -> usize {
        self.layers.iter().map(|l| l.head_dim).max().unwrap_or(0)
    }

    pub(crate) fn head(&self, layer: usize) -> HeadShape {
        let head_dim = self.layers[layer].head_dim;
        HeadShape { head_dim, bytes: head_bytes(head_dim, self.element), element: self.element }
    }
}

/// Bytes of a head's share of a page in one layer.
fn head_bytes(head_dim: usize, element: KvElement) -> usize {
    let padded = head_dim.checked_next_multiple_of(16).unwrap_or(usize::MAX);
    head_dim.saturating_add(padded).saturating_mul(element.bytes_of_16())
}

/// A head's share of a page.
#[derive(Clone, Copy)]
pub(crate) struct HeadShape {
    pub head_dim: usize,
    pub bytes: usize,
    pub element: KvElement,
}

/// Puts `columns` of 16 columns of keys or values, from column `column` of all heads side by side, into their place `lane` of a page.
#[inline(always)]
pub(crate) unsafe fn store_kv<S: Isa>(
    shape: &HeadShape,
    key: bool,
    page: *mut u8,
    lane: usize,
    column: usize,
    columns: usize,
    v: S::F,
) {
    unsafe {
        match shape.element {
            KvElement::F32 => store_as::<S, F32>(shape, key, page, lane, column, columns, v),
            KvElement::F16 => store_as::<S, F16>(shape, key, page, lane, column, columns, v),
            KvElement::Q8_0 => store_int8::<S>(shape, key, page, lane, column, v),
        }
    }
}

/// Sixteen columns of one head: their width is a multiple of 16.
#[inline(always)]
unsafe fn store_int8<S: Isa>(
    shape: &HeadShape,
    key: bool,
    page: *mut u8,
    lane: usize,
    column: usize,
    v: S::F,
) {
    unsafe {
        let (hd, d) = (shape.head_dim, column % shape.head_dim);
        let page = page.add(column / hd * shape.bytes + if key { 0 } else { hd * 18 });
        let step = half::f16::from_f32_const(S::magnitude(v, S::zero()) / 127.0);
        let value = step.to_f32_const();
        // Too small for a step: zeros.
        let inverse = if value == 0.0 { 0.0 } else { 1.0 / value };
        let mut q = [0i8; 32];
        S::quantize(v, S::zero(), inverse, q.as_mut_ptr());
        let (bytes, steps) = (page, page.add(hd * PAGE));
        if key {
            for i in 0..16 {
                *bytes.add((d + i) * PAGE + lane) = q[i] as u8;
            }
        } else {
            std::ptr::copy_nonoverlapping(q.as_ptr() as *const u8, bytes.add(lane * hd + d), 16);
        }
        let at = if key { d / 16 * PAGE + lane } else { lane * (hd / 16) + d / 16 };
        (steps as *mut u16).add(at).write_unaligned(step.to_bits());
    }
}

/// Widens a head's share of a page of int8 to that of a page of f32.
#[inline(always)]
pub(crate) unsafe fn widen_page<S: Isa>(page: *const u8, hd: usize, out: *mut f32) {
    unsafe {
        let (keys, values) = (page, page.add(hd * 18));
        for d in 0..hd {
            let step = S::load_f16((keys.add(hd * PAGE) as *const u16).add(d / 16 * PAGE));
            S::store(
                out.add(d * PAGE),
                S::mul(S::load_i8((keys as *const i8).add(d * PAGE)), step),
            );
        }
        for i in 0..PAGE * hd / 16 {
            let step = (values.add(hd * PAGE) as *const u16).add(i).read_unaligned();
            let step = S::splat(half::f16::from_bits(step).to_f32_const());
            S::store(
                out.add(hd * PAGE + i * 16),
                S::mul(S::load_i8((values as *const i8).add(i * 16)), step),
            );
        }
    }
}

#[inline(always)]
unsafe fn store_as<S: Isa, E: Element<S>>(
    shape: &HeadShape,
    key: bool,
    page: *mut u8,
    lane: usize,
    column: usize,
    columns: usize,
    v: S::F,
) {
    unsafe {
        let (hd, padded) = (shape.head_dim, shape.head_dim.next_multiple_of(16));
        let (mut head, mut d) = (column / hd, column % hd);
        if !key && hd.is_multiple_of(16) {
            E::store(page.add(head * shape.bytes), hd * PAGE + lane * padded + d, v);
            return;
        }
        let mut raw = [0u32; 16];
        let raw = raw.as_mut_ptr() as *mut u8;
        E::store(raw, 0, v);
        for i in 0..columns {
            let at = if key { d * PAGE + lane } else { hd * PAGE + lane * padded + d };
            let to = page.add(head * shape.bytes + at * E::SIZE);
            std::ptr::copy_nonoverlapping(raw.add(i * E::SIZE), to, E::SIZE);
            d += 1;
            if d == hd {
                (head, d) = (head + 1, 0);
            }
        }
    }
}
