//! Large blocks of zeroed memory: anonymous pages from the operating system, aligned to 2 MiB, huge pages advised, touched only as used.
//! In: a size. Out: a byte slice, or an error instead of an abort.
//! Built with `--cfg watched_arenas` (scripts/check-kernels.sh) a block is as long as asked for and comes from the heap, where
//! AddressSanitizer and valgrind see every access past its end.
#![allow(unsafe_code)]

use std::ptr::NonNull;

/// Alignment of an arena: one huge page; watched ones a cache line.
const ALIGN: usize = if cfg!(watched_arenas) { 64 } else { 2 << 20 };
/// Mapped beyond what was asked for, so that an aligned block fits; the heap aligns by itself.
const SLACK: usize = if cfg!(watched_arenas) { 0 } else { ALIGN };

/// The memory could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory for {0} bytes")]
pub struct NoMemory(pub usize);

/// A block of zeroed memory, released when dropped.
pub struct Arena {
    /// What the operating system gave.
    base: NonNull<u8>,
    mapped: usize,
    /// The aligned part.
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an arena is plain owned memory; access goes through `&self` (shared) or `&mut self` (exclusive), like a `Box<[u8]>`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// `len` zeroed bytes, aligned to 2 MiB (watched: to 64 bytes).
    pub fn new(len: usize) -> Result<Arena, NoMemory> {
        let most = isize::MAX as usize - ALIGN;
        let mapped = len.max(1).checked_add(SLACK).filter(|&n| n <= most).ok_or(NoMemory(len))?;
        let base = NonNull::new(map(mapped)).ok_or(NoMemory(len))?;
        let offset = base.as_ptr().align_offset(ALIGN);
        // SAFETY: `offset` <= SLACK (0 for the aligned heap) and `mapped` >= len + SLACK, so start and start + len lie within the block.
        let start = unsafe { base.add(offset) };
        advise_huge(start.as_ptr(), len);
        Ok(Arena { base, mapped, start, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start+len` is mapped, initialised (zero pages) and owned; `&self` forbids writers.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unmap(self.base.as_ptr(), self.mapped);
    }
}

#[cfg(all(unix, not(watched_arenas)))]
fn map(len: usize) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no existing memory.
    let p = unsafe {
        libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if p == libc::MAP_FAILED { std::ptr::null_mut() } else { p as *mut u8 }
}

#[cfg(all(unix, not(watched_arenas)))]
fn unmap(p: *mut u8, len: usize) {
    // SAFETY: `p` and `len` are those of a mapping made by `map`, and its owner is being dropped.
    unsafe { libc::munmap(p as *mut libc::c_void, len) };
}

#[cfg(any(not(unix), watched_arenas))]
fn map(len: usize) -> *mut u8 {
    // SAFETY: the size is not zero, and with the alignment below isize::MAX (`Arena::new`).
    unsafe { std::alloc::alloc_zeroed(std::alloc::Layout::from_size_align_unchecked(len, 64)) }
}

#[cfg(any(not(unix), watched_arenas))]
fn unmap(p: *mut u8, len: usize) {
    // SAFETY: allocated by `map` with this layout.
    unsafe { std::alloc::dealloc(p, std::alloc::Layout::from_size_align_unchecked(len, 64)) }
}

fn advise_huge(p: *mut u8, len: usize) {
    #[cfg(all(target_os = "linux", not(watched_arenas)))]
    // SAFETY: advice about our own mapping; it changes no content, and a refusal does not matter.
    unsafe {
        libc::madvise(p as *mut libc::c_void, len, libc::MADV_HUGEPAGE);
    }
    #[cfg(any(not(target_os = "linux"), watched_arenas))]
    let _ = (p, len);
}

/// One heap for all threads from now on, where glibc would give each thread one of its own with 64 MB of addresses; call it before threads
/// are started.
pub fn one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt sets one number of the allocator, under the allocator's own lock; it touches no memory of ours.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_aligned_zeroed_and_writable_to_its_end() {
        let mut arena = Arena::new(3 * ALIGN + 5).unwrap();
        assert_eq!(arena.bytes().as_ptr() as usize % ALIGN, 0);
        assert!(arena.bytes().iter().all(|&b| b == 0));
        *arena.bytes_mut().last_mut().unwrap() = 7;
        assert_eq!(arena.bytes()[3 * ALIGN + 4], 7);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        assert!(Arena::new(usize::MAX).is_err());
        assert!(Arena::new(1 << 60).is_err());
    }
}
