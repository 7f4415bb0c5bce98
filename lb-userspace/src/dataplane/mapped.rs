//! Arrays of the data path, mapped into this process. This file owns the `unsafe` of shared memory.
//!
//! The kernel's programs read (or, counters, write) the same memory at any time, so every access is one aligned 8-byte atomic.

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// An mmapable BPF array of `T`, seen as 64-bit words.
#[derive(Debug)]
pub struct Mapped<T> {
    memory: NonNull<AtomicU64>,
    /// Length of the mapping, bytes.
    length: NonZeroUsize,
    /// Number of values.
    entries: u32,
    /// Keeps the map alive (and its file descriptor open).
    _map: MapData,
    _values: PhantomData<T>,
}

// SAFETY: all access is atomic; the mapping belongs to the process, not to a thread.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Maps the memory of an array made with BPF_F_MMAPABLE.
    pub fn new(map: Map, name: &str) -> Result<Self> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "the kernel pads values to eight bytes"
            )
        };
        let Map::Array(map) = map else {
            anyhow::bail!("map {name} is not an array")
        };
        let info = map
            .info()
            .with_context(|| format!("map {name}: its properties"))?;
        ensure!(
            info.value_size() as usize == size_of::<T>(),
            "map {name} has values of {} bytes, this program expects {}",
            info.value_size(),
            size_of::<T>()
        );
        let entries = info.max_entries();
        let length = NonZeroUsize::new(entries as usize * size_of::<T>())
            .with_context(|| format!("map {name} is empty"))?;
        // SAFETY: a fresh shared mapping, its address chosen by the kernel.
        let memory = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                map.fd(),
                0,
            )
        }
        .with_context(|| format!("map {name}: mmap of {length} bytes"))?;
        Ok(Self {
            memory: memory.cast(),
            length,
            entries,
            _map: map,
            _values: PhantomData,
        })
    }

    pub const fn entries(&self) -> u32 {
        self.entries
    }

    fn word(&self, index: u32, word: usize) -> &AtomicU64 {
        assert!(
            index < self.entries && word < Self::WORDS,
            "index {index}, word {word} of {} entries",
            self.entries
        );
        // SAFETY: inside the mapping (just checked), aligned (mappings are page-aligned), valid while `self` lives.
        unsafe {
            self.memory
                .add(index as usize * Self::WORDS + word)
                .as_ref()
        }
    }

    /// One 8-byte load.
    pub fn load(&self, index: u32, word: usize) -> u64 {
        self.word(index, word).load(Ordering::Acquire)
    }

    /// One 8-byte store, after which everything stored before is visible.
    pub fn store(&self, index: u32, word: usize, value: u64) {
        self.word(index, word).store(value, Ordering::Release);
    }

    /// Copies what both have of another array, value by value.
    pub fn copy_from(&self, other: &Self, from: u32, to: u32) {
        let most = (other.entries - from).min(self.entries - to);
        self.copy_range(other, from, to, most);
    }

    /// Copies `count` values.
    pub fn copy_range(&self, other: &Self, from: u32, to: u32, count: u32) {
        for i in 0..count {
            for word in 0..Self::WORDS {
                let value = other.load(from + i, word);
                // Most of an array is zero, and memory that is not touched need not exist.
                if value != self.load(to + i, word) {
                    self.store(to + i, word, value);
                }
            }
        }
    }

    /// Compare-and-swap of one 8-byte word.
    pub fn swap(&self, index: u32, word: usize, old: u64, new: u64) -> bool {
        self.word(index, word)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once.
        let result = unsafe { munmap(self.memory.cast(), self.length.get()) };
        debug_assert!(result.is_ok(), "munmap: {result:?}");
    }
}
