//! The tensors that hold keys and values, one pair a layer, in pages.
//!
//! [`KvCache`] owns `pages * PAGE` rows a layer; row `page * PAGE + slot` is one position of one sequence.
//! Who owns which page is decided elsewhere with integers alone; here is only memory. It is written in
//! place by the kernels, so clones of a cache are the same cache.
//!
//! On the CPU the pages come zeroed from the operating system and cost nothing until they are touched.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::step::PAGE;

/// How wide the keys (and the values) of one layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Floats of one position: `kv_heads * head_dim`.
    pub fn width(self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

/// Keys and values of all layers. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerKv>,
    pages: usize,
    dtype: DType,
}

/// One layer: keys and values, each `[pages * PAGE, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerKv {
    pub shape: KvShape,
    pub keys: Tensor,
    pub values: Tensor,
}

impl KvCache {
    /// Room for `pages` pages in every layer.
    ///
    /// # Errors
    /// `OutOfMemory` when it cannot be had; the message says how much was asked for.
    pub fn new(layers: &[KvShape], pages: usize, dtype: DType, device: &Device) -> Result<Self> {
        let need = Self::bytes_for(layers, pages, dtype);
        let need = need.ok_or_else(|| too_large(usize::MAX, pages))?;
        let layers = layers.iter().map(|&shape| {
            let dims = (pages * PAGE, shape.width());
            if device.is_cpu() {
                probe(dims.0 * dims.1 * dtype.size_in_bytes()).ok_or_else(|| too_large(need, pages))?;
            }
            let zeros =
                || Tensor::zeros(dims, dtype, device).map_err(|e| too_large(need, pages).with_source(e));
            Ok(LayerKv { shape, keys: zeros()?, values: zeros()? })
        });
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, pages, dtype })
    }

    /// Bytes of `pages` pages in all layers; `None` if that is more than can be addressed.
    pub fn bytes_for(layers: &[KvShape], pages: usize, dtype: DType) -> Option<usize> {
        let position = layers.iter().try_fold(0usize, |sum, shape| {
            let width = shape.kv_heads.checked_mul(shape.head_dim)?;
            sum.checked_add(width.checked_mul(2 * dtype.size_in_bytes())?)
        })?;
        position.checked_mul(PAGE)?.checked_mul(pages).filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// Pages of each layer.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of all layers together.
    pub fn bytes(&self) -> usize {
        let shapes: Vec<_> = self.layers.iter().map(|layer| layer.shape).collect();
        Self::bytes_for(&shapes, self.pages, self.dtype).unwrap_or(usize::MAX)
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes that [`read_page`](Self::read_page) gives: four for each number, whatever they are stored in.
    pub fn page_bytes(&self) -> usize {
        self.layers.iter().map(|layer| 2 * 4 * PAGE * layer.shape.width()).sum()
    }

    /// Appends what lies in a page to `out`: per layer keys, then values, as little-endian f32.
    ///
    /// # Errors
    /// What the device says.
    pub fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        for tensor in self.layers.iter().flat_map(|layer| [&layer.keys, &layer.values]) {
            let rows = tensor.narrow(0, page as usize * PAGE, PAGE)?.to_dtype(DType::F32)?;
            let numbers = rows.flatten_all()?.to_vec1::<f32>()?;
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Ok(())
    }

    /// Makes a page hold what [`read_page`](Self::read_page) gave.
    ///
    /// # Errors
    /// `Internal` if there are too few bytes; what the device says.
    pub fn write_page(&self, page: u32, mut bytes: &[u8]) -> Result<()> {
        for layer in &self.layers {
            let shape = (PAGE, layer.shape.width());
            for tensor in [&layer.keys, &layer.values] {
                let (own, rest) = bytes
                    .split_at_checked(4 * shape.0 * shape.1)
                    .ok_or_else(|| Error::internal("a page has fewer bytes than its layers need"))?;
                bytes = rest;
                let read = |word: &[u8]| word.try_into().map_or(f32::NAN, f32::from_le_bytes);
                let numbers: Vec<f32> = own.chunks_exact(4).map(read).collect();
                let rows = Tensor::from_vec(numbers, shape, tensor.device())?.to_dtype(self.dtype)?;
                tensor.slice_set(&rows, 0, page as usize * PAGE)?;
            }
        }
        Ok(())
    }

    /// The tensors of one layer.
    ///
    /// # Errors
    /// `Internal` when there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<&LayerKv> {
        let missing =
            || Error::internal(format!("the KV cache has {} layers, not {layer}", self.layers.len()));
        self.layers.get(layer).ok_or_else(missing)
    }
}

/// Asks whether one allocation of this size is possible: the zeroed allocation itself would abort.
fn probe(bytes: usize) -> Option<()> {
    Vec::<u8>::new().try_reserve_exact(bytes).ok()
}

fn too_large(bytes: usize, pages: usize) -> Error {
    Error::out_of_memory(format!(
        "the KV cache of {} positions needs {:.1} GiB, which cannot be had; \
         load the model with a smaller kv_memory or context_length",
        pages.saturating_mul(PAGE),
        bytes as f64 / (1u64 << 30) as f64
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SHAPES: [KvShape; 2] =
        [KvShape { kv_heads: 3, head_dim: 64 }, KvShape { kv_heads: 1, head_dim: 256 }];

    #[test]
    fn size_is_known_and_memory_is_zero() {
        let cache = KvCache::new(&SHAPES, 5, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(cache.bytes(), (3 * 64 + 256) * 2 * 4 * PAGE * 5);
        assert_eq!((cache.pages(), cache.layers()), (5, 2));
        let layer = cache.layer(1).unwrap();
        assert_eq!(layer.keys.dims(), [5 * PAGE, 256]);
        assert_eq!(layer.values.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(cache.layer(2).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn a_page_goes_out_and_comes_back() {
        for dtype in [DType::F32, DType::BF16] {
            let cache = KvCache::new(&SHAPES, 3, dtype, &Device::Cpu).unwrap();
            // Small whole numbers, which bf16 holds exactly.
            let numbers = (0..cache.page_bytes() / 4).map(|at| (at % 250) as f32);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            cache.write_page(1, &bytes).unwrap();
            let mut found = Vec::new();
            cache.read_page(1, &mut found).unwrap();
            assert!(found == bytes, "{dtype:?}");
            for other in [0, 2] {
                found.clear();
                cache.read_page(other, &mut found).unwrap();
                assert!(found.iter().all(|&byte| byte == 0), "{dtype:?}");
            }
            assert_eq!(cache.write_page(1, &bytes[1..]).unwrap_err().kind(), ErrorKind::Internal);
        }
    }

    #[test]
    fn an_absurd_size_is_an_error_and_not_an_abort() {
        for pages in [usize::MAX, usize::MAX / 64, 1 << 50] {
            let error = KvCache::new(&SHAPES, pages, DType::F32, &Device::Cpu).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{pages}: {error}");
        }
    }
}
