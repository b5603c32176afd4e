//! Where recurrent state lies: one store a layer, `slots` rows of a fixed number of f32.
//!
//! A layer is a candle tensor `[slots, len]`, or on the CPU a vector that is written in place. Which slot
//! belongs to whom is decided elsewhere with integers alone.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{DType, Device, Tensor};

use super::probe;
use crate::error::{Error, Result};

/// The state of one layer, of all sequences. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct LayerState {
    len: usize,
    slots: usize,
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    Tensor(Tensor),
    Native(Arc<RwLock<Vec<f32>>>),
}

impl LayerState {
    /// `slots` states of `len` numbers, all zero, for our CPU kernels; `None` when they cannot be had.
    pub fn native(slots: usize, len: usize) -> Option<Self> {
        let count = slots.checked_mul(len)?;
        probe(count.checked_mul(size_of::<f32>())?)?;
        Some(LayerState { len, slots, store: Store::Native(Arc::new(RwLock::new(vec![0.0; count]))) })
    }

    /// The same as a tensor.
    ///
    /// # Errors
    /// What the device says.
    pub fn tensor(slots: usize, len: usize, device: &Device) -> Result<Self> {
        let store = Store::Tensor(Tensor::zeros((slots, len), DType::F32, device)?);
        Ok(LayerState { len, slots, store })
    }

    /// Numbers of one state.
    pub fn state_len(&self) -> usize {
        self.len
    }

    /// How many states there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The states `[slots, len]`, to be read by our CPU kernels.
    ///
    /// # Errors
    /// `Internal` when they are a tensor.
    pub fn read_native(&self) -> Result<RwLockReadGuard<'_, Vec<f32>>> {
        match &self.store {
            Store::Native(states) => Ok(states.read().unwrap_or_else(PoisonError::into_inner)),
            Store::Tensor(_) => Err(super::foreign()),
        }
    }

    /// The same, to be written.
    ///
    /// # Errors
    /// As [`read_native`](Self::read_native).
    pub fn write_native(&self) -> Result<RwLockWriteGuard<'_, Vec<f32>>> {
        match &self.store {
            Store::Native(states) => Ok(states.write().unwrap_or_else(PoisonError::into_inner)),
            Store::Tensor(_) => Err(super::foreign()),
        }
    }

    /// The tensor `[slots, len]`.
    ///
    /// # Errors
    /// `Internal` when the states were made for our CPU kernels.
    pub fn as_tensor(&self) -> Result<&Tensor> {
        match &self.store {
            Store::Tensor(tensor) => Ok(tensor),
            Store::Native(_) => Err(super::foreign()),
        }
    }

    /// Appends the state in `slot` to `out`, as little-endian f32.
    ///
    /// # Errors
    /// `Internal` when there is no such slot; what the device says.
    pub fn read(&self, slot: u32, out: &mut Vec<u8>) -> Result<()> {
        let at = self.at(slot)?;
        let numbers = match &self.store {
            Store::Tensor(tensor) => tensor.get(slot as usize)?.to_vec1::<f32>()?,
            Store::Native(_) => self.read_native()?[at..at + self.len].to_vec(),
        };
        out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        Ok(())
    }

    /// Makes `slot` hold what [`read`](Self::read) gave.
    ///
    /// # Errors
    /// `Internal` when there is no such slot, or another number of bytes; what the device says.
    pub fn write(&self, slot: u32, bytes: &[u8]) -> Result<()> {
        let at = self.at(slot)?;
        let read = |word: &[u8]| word.try_into().map_or(f32::NAN, f32::from_le_bytes);
        let numbers: Vec<f32> = bytes.chunks_exact(4).map(read).collect();
        if numbers.len() != self.len {
            return Err(Error::internal(format!("a state of {} numbers, not {}", self.len, numbers.len())));
        }
        match &self.store {
            Store::Tensor(tensor) => {
                let row = Tensor::from_vec(numbers, (1, self.len), tensor.device())?;
                tensor.slice_set(&row, 0, slot as usize)?;
            }
            Store::Native(_) => self.write_native()?[at..at + self.len].copy_from_slice(&numbers),
        }
        Ok(())
    }

    fn at(&self, slot: u32) -> Result<usize> {
        match (slot as usize) < self.slots {
            true => Ok(slot as usize * self.len),
            false => Err(Error::internal(format!("slot {slot} of {}", self.slots))),
        }
    }
}
