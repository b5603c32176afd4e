//! Where keys and values lie, one store a layer, in pages.
//!
//! [`KvCache`] owns `pages * PAGE` rows a layer; row `page * PAGE + slot` is one position of one sequence.
//! Who owns which page is decided elsewhere with integers alone; here is only memory. It is written in
//! place by the kernels, so clones of a cache are the same cache.
//!
//! A layer is a pair of candle tensors, or on the CPU a [`NativeKv`], whose pages are made for our kernels. What a page
//! gives to the outside is the same in both: f32, a row a position.

mod native;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use self::native::{Element, KvType, NativeKv, Numbers, Pages};
use crate::error::{Error, Result};
use crate::step::PAGE;

/// How wide the keys (and the values) of one layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Numbers of one position: `kv_heads * head_dim`.
    pub fn width(self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }
}

/// What a cache is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// candle tensors.
    Tensors(DType),
    /// Pages of our CPU kernels.
    Native(KvType),
}

impl KvFormat {
    /// Bytes of one position of one layer; `None` if that is more than can be addressed.
    pub fn position_bytes(self, shape: KvShape) -> Option<usize> {
        match self {
            KvFormat::Native(kind) => kind.position_bytes(shape),
            KvFormat::Tensors(dtype) => {
                shape.kv_heads.checked_mul(shape.head_dim)?.checked_mul(2 * dtype.size_in_bytes())
            }
        }
    }
}

/// Keys and values of all layers. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerKv>,
    pages: usize,
    format: KvFormat,
}

/// One layer.
#[derive(Clone, Debug)]
pub struct LayerKv {
    pub shape: KvShape,
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    Tensors(TensorKv),
    Native(Arc<NativeKv>),
}

/// One layer's keys and values as tensors, each `[pages * PAGE, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
pub struct TensorKv {
    pub keys: Tensor,
    pub values: Tensor,
}

impl LayerKv {
    /// The tensors.
    ///
    /// # Errors
    /// `Internal` when the cache was made for our CPU kernels.
    pub fn tensors(&self) -> Result<&TensorKv> {
        match &self.store {
            Store::Tensors(tensors) => Ok(tensors),
            Store::Native(_) => Err(foreign()),
        }
    }

    /// The pages of our CPU kernels.
    ///
    /// # Errors
    /// `Internal` when the cache is made of tensors.
    pub fn native(&self) -> Result<&NativeKv> {
        match &self.store {
            Store::Native(kv) => Ok(kv),
            Store::Tensors(_) => Err(foreign()),
        }
    }
}

impl TensorKv {
    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        for tensor in [&self.keys, &self.values] {
            let rows = tensor.narrow(0, page as usize * PAGE, PAGE)?.to_dtype(DType::F32)?;
            let numbers = rows.flatten_all()?.to_vec1::<f32>()?;
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Ok(())
    }

    fn write_page(&self, page: u32, bytes: &[u8]) -> Result<()> {
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        for (tensor, bytes) in [(&self.keys, keys), (&self.values, values)] {
            let read = |word: &[u8]| word.try_into().map_or(f32::NAN, f32::from_le_bytes);
            let numbers: Vec<f32> = bytes.chunks_exact(4).map(read).collect();
            let rows = Tensor::from_vec(numbers, (PAGE, tensor.dim(1)?), tensor.device())?;
            tensor.slice_set(&rows.to_dtype(tensor.dtype())?, 0, page as usize * PAGE)?;
        }
        Ok(())
    }

    fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        for tensor in [&self.keys, &self.values] {
            // A copy of the page: source and target may not share their storage.
            let page = tensor.narrow(0, from as usize * PAGE, PAGE)?.copy()?;
            tensor.slice_set(&page, 0, to as usize * PAGE)?;
        }
        Ok(())
    }
}

impl KvCache {
    /// Tensors with room for `pages` pages in every layer.
    ///
    /// # Errors
    /// `OutOfMemory` when it cannot be had; the message says how much was asked for.
    pub fn new(layers: &[KvShape], pages: usize, dtype: DType, device: &Device) -> Result<Self> {
        let format = KvFormat::Tensors(dtype);
        let need = Self::bytes_for(layers, pages, format).ok_or_else(|| too_large(usize::MAX, pages))?;
        Self::with(layers, pages, format, |shape| {
            let dims = (pages * PAGE, shape.width());
            if device.is_cpu() {
                probe(dims.0 * dims.1 * dtype.size_in_bytes()).ok_or_else(|| too_large(need, pages))?;
            }
            let zeros =
                || Tensor::zeros(dims, dtype, device).map_err(|e| too_large(need, pages).with_source(e));
            Ok(Store::Tensors(TensorKv { keys: zeros()?, values: zeros()? }))
        })
    }

    /// Pages for our CPU kernels.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn native(layers: &[KvShape], pages: usize, kind: KvType) -> Result<Self> {
        let format = KvFormat::Native(kind);
        let need = Self::bytes_for(layers, pages, format).ok_or_else(|| too_large(usize::MAX, pages))?;
        Self::with(layers, pages, format, |shape| {
            let kv = NativeKv::new(shape, pages, kind).ok_or_else(|| too_large(need, pages))?;
            Ok(Store::Native(Arc::new(kv)))
        })
    }

    fn with(
        layers: &[KvShape],
        pages: usize,
        format: KvFormat,
        store: impl Fn(KvShape) -> Result<Store>,
    ) -> Result<Self> {
        let layers = layers.iter().map(|&shape| Ok(LayerKv { shape, store: store(shape)? }));
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, pages, format })
    }

    /// Bytes of `pages` pages in all layers; `None` if that is more than can be addressed.
    pub fn bytes_for(layers: &[KvShape], pages: usize, format: KvFormat) -> Option<usize> {
        let position =
            layers.iter().try_fold(0usize, |sum, &shape| sum.checked_add(format.position_bytes(shape)?))?;
        position.checked_mul(PAGE)?.checked_mul(pages).filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// Pages of each layer.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// What it is made of.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Bytes of all layers together.
    pub fn bytes(&self) -> usize {
        let shapes: Vec<_> = self.layers.iter().map(|layer| layer.shape).collect();
        Self::bytes_for(&shapes, self.pages, self.format).unwrap_or(usize::MAX)
    }

    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes that [`read_page`](Self::read_page) gives: four for each number, whatever they are stored in.
    pub fn page_bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer_page_bytes(layer.shape)).sum()
    }

    /// Appends what lies in a page to `out`: per layer keys, then values, as little-endian f32.
    ///
    /// # Errors
    /// What the device says.
    pub fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        self.layers.iter().try_for_each(|layer| match &layer.store {
            Store::Tensors(tensors) => tensors.read_page(page, out),
            Store::Native(kv) => kv.read_page(page, out),
        })
    }

    /// Makes a page hold what [`read_page`](Self::read_page) gave.
    ///
    /// # Errors
    /// `Internal` if there are too few bytes; what the device says.
    pub fn write_page(&self, page: u32, mut bytes: &[u8]) -> Result<()> {
        for layer in &self.layers {
            let (own, rest) = bytes
                .split_at_checked(layer_page_bytes(layer.shape))
                .ok_or_else(|| Error::internal("a page has fewer bytes than its layers need"))?;
            bytes = rest;
            match &layer.store {
                Store::Tensors(tensors) => tensors.write_page(page, own)?,
                Store::Native(kv) => kv.write_page(page, own)?,
            }
        }
        Ok(())
    }

    /// Copies page `from` over page `to`, in every layer.
    ///
    /// # Errors
    /// `Internal` when one is missing; what the device says.
    pub fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        if from == to {
            return Ok(());
        }
        self.layers.iter().try_for_each(|layer| match &layer.store {
            Store::Tensors(tensors) => tensors.copy_page(from, to),
            Store::Native(kv) => kv.copy_page(from, to),
        })
    }

    /// The store of one layer.
    ///
    /// # Errors
    /// `Internal` when there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<&LayerKv> {
        let missing =
            || Error::internal(format!("the KV cache has {} layers, not {layer}", self.layers.len()));
        self.layers.get(layer).ok_or_else(missing)
    }
}

/// Bytes of a page of one layer outside of the cache.
fn layer_page_bytes(shape: KvShape) -> usize {
    2 * 4 * PAGE * shape.width()
}

fn foreign() -> Error {
    Error::internal("the KV cache was made by other Ops than those that use it")
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
        let cache = KvCache::native(&[KvShape { kv_heads: 2, head_dim: 20 }], 5, KvType::BF16).unwrap();
        assert_eq!(cache.bytes(), 2 * 32 * 2 * 2 * PAGE * 5);
        let cache = KvCache::new(&SHAPES, 5, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(cache.bytes(), (3 * 64 + 256) * 2 * 4 * PAGE * 5);
        assert_eq!((cache.pages(), cache.layers()), (5, 2));
        let layer = cache.layer(1).unwrap().tensors().unwrap();
        assert_eq!(layer.keys.dims(), [5 * PAGE, 256]);
        assert_eq!(layer.values.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(cache.layer(1).unwrap().native().unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(cache.layer(2).unwrap_err().kind(), ErrorKind::Internal);
    }

    fn caches(pages: usize) -> Vec<KvCache> {
        let tensors = [DType::F32, DType::BF16].map(|t| KvCache::new(&SHAPES, pages, t, &Device::Cpu));
        let native = [KvType::F32, KvType::BF16].map(|kind| KvCache::native(&SHAPES, pages, kind));
        tensors.into_iter().chain(native).map(|cache| cache.unwrap()).collect()
    }

    #[test]
    fn a_page_goes_out_and_comes_back() {
        for cache in caches(3) {
            let format = cache.format();
            // Small whole numbers, which bf16 holds exactly.
            let numbers = (0..cache.page_bytes() / 4).map(|at| (at % 250) as f32);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            cache.write_page(1, &bytes).unwrap();
            let mut found = Vec::new();
            for (page, wanted) in [(0, false), (1, true), (2, false)] {
                found.clear();
                cache.read_page(page, &mut found).unwrap();
                match wanted {
                    true => assert!(found == bytes, "{format:?}"),
                    false => assert!(found.iter().all(|&byte| byte == 0), "{format:?}"),
                }
            }
            cache.copy_page(1, 2).unwrap();
            found.clear();
            cache.read_page(2, &mut found).unwrap();
            assert!(found == bytes, "{format:?}");
            assert_eq!(cache.write_page(1, &bytes[1..]).unwrap_err().kind(), ErrorKind::Internal);
        }
    }

    #[test]
    fn an_absurd_size_is_an_error_and_not_an_abort() {
        for pages in [usize::MAX, usize::MAX / 64, 1 << 50] {
            for error in [
                KvCache::new(&SHAPES, pages, DType::F32, &Device::Cpu).unwrap_err(),
                KvCache::native(&SHAPES, pages, KvType::BF16).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{pages}: {error}");
            }
        }
    }
}
