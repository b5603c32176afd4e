//! Where keys and values lie, one store a layer, in pages.
//!
//! [`KvCache`] owns `pages * PAGE` rows a layer; row `page * PAGE + slot` is one position of one sequence.
//! Who owns which page is decided elsewhere with integers alone; here is only memory. It is written in
//! place by the kernels, so clones of a cache are the same cache.
//!
//! A layer is a pair of candle tensors, or on the CPU a [`NativeKv`], whose pages are made for our kernels.
//! What a page gives to the outside is the same in both: f32, a row a position (bytes as they are).

pub mod int8;
mod native;
mod states;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use self::native::{Element, KvType, NativeKv, Numbers, PageView};
pub use self::states::LayerState;
use crate::error::{Error, Result};
use crate::step::PAGE;

/// How wide the keys (and the values) of one layer are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KvShape {
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl KvShape {
    /// Numbers of one position: `kv_heads * head_dim`.
    pub fn width(self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }

    /// How many layers of the shape `other` take exactly the memory of one of this shape; `None` if no whole
    /// number does.
    fn holds(self, other: KvShape) -> Option<usize> {
        let padded = |shape: KvShape| Some(shape.kv_heads.saturating_mul(shape.padded_dim()?));
        let times = self.width().checked_div(other.width())?;
        let exact = times.checked_mul(other.width())? == self.width()
            && times.checked_mul(padded(other)?)? == padded(self)?;
        (exact && times > 0).then_some(times)
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

/// Which layer lies where: layers with the same window form groups, pages are as wide as a group.
///
/// A page is a row through all *columns*, and each column holds keys and values of one layer of the group
/// that has leased the page. So groups of equal size use the same memory, and pages go from one to the other.
///
/// ```text
/// 3 layers without a window, 5 with one:    column 0   column 1
///   group 0 (all)                             A          B
///   group 1 (all)                             C          -       (this column stays empty)
///   group 2 (window)                          d          e
///   ...
/// ```
/// Where the widest layers take the memory of a whole number of any other (Gemma 4: of one or two), columns
/// are as wide as these, and the others lie side by side in a column: groups of other shapes then use the
/// same memory, too. Otherwise layers of other shapes have columns of their own, which stand empty in the
/// pages of groups without such layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// The shape of each column.
    columns: Vec<KvShape>,
    /// The window of each group.
    windows: Vec<Option<usize>>,
    /// Where each layer with keys and values lies.
    layers: Vec<Place>,
    /// For each layer with recurrent state, the numbers of one state.
    states: Vec<usize>,
}

/// Where a layer lies: in a column of the pages of a group, beside others of its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    group: usize,
    column: usize,
    /// Its number among the layers in the column, and how many have room there.
    number: usize,
    of: usize,
    shape: KvShape,
}

/// Layers that are alike, by what decides about groups.
struct LayerKind {
    window: Option<usize>,
    /// The shape of a column, and layers in it; `None`: each has one of its own shape.
    column: Option<(KvShape, usize)>,
    members: Vec<usize>,
}

/// Groups of a model, at most: each has a page table in every step.
const MAX_GROUPS: usize = 10;

impl KvLayout {
    /// The layout of layers with these shapes and windows.
    pub fn new(layers: &[(KvShape, Option<usize>)]) -> Self {
        let kinds = kinds(layers);
        let columns = |kind: &LayerKind| kind.members.len().div_ceil(kind.column.map_or(1, |(_, of)| of));
        let size = group_size(&kinds.iter().map(columns).collect::<Vec<_>>());
        let nowhere = Place { group: 0, column: 0, number: 0, of: 1, shape: KvShape::default() };
        let mut layout = KvLayout {
            columns: vec![],
            windows: vec![],
            layers: vec![nowhere; layers.len()],
            states: vec![],
        };
        for kind in kinds {
            let of = kind.column.map_or(1, |(_, of)| of);
            for group in kind.members.chunks(size * of) {
                let mut taken = vec![false; layout.columns.len()];
                for side_by_side in group.chunks(of) {
                    let shape = layers[side_by_side[0]].0;
                    let column = layout.column(kind.column.map_or(shape, |(shape, _)| shape), &mut taken);
                    for (number, &layer) in side_by_side.iter().enumerate() {
                        let group = layout.windows.len();
                        layout.layers[layer] = Place { group, column, number, of, shape };
                    }
                }
                layout.windows.push(kind.window);
            }
        }
        layout
    }

    /// One group without a window.
    pub fn single(shapes: &[KvShape]) -> Self {
        let layers: Vec<_> = shapes.iter().map(|&shape| (shape, None)).collect();
        KvLayout::new(&layers)
    }

    /// The same with layers whose recurrent state is so many numbers each.
    pub fn with_states(self, states: Vec<usize>) -> Self {
        KvLayout { states, ..self }
    }

    /// Whether there are layers with recurrent state.
    pub fn has_state(&self) -> bool {
        !self.states.is_empty()
    }

    /// Bytes of one slot: the f32 of all layers with recurrent state, of one sequence.
    pub fn slot_bytes(&self) -> usize {
        self.states.iter().fold(0usize, |sum, len| sum.saturating_add(len.saturating_mul(size_of::<f32>())))
    }

    /// The windows of the groups.
    pub fn windows(&self) -> &[Option<usize>] {
        &self.windows
    }

    /// The first column of this shape that is not taken.
    fn column(&mut self, shape: KvShape, taken: &mut Vec<bool>) -> usize {
        let free = (0..self.columns.len()).find(|&at| !taken[at] && self.columns[at] == shape);
        let column = free.unwrap_or_else(|| {
            self.columns.push(shape);
            taken.push(false);
            self.columns.len() - 1
        });
        taken[column] = true;
        column
    }

    /// Bytes of `pages` pages; `None` if that is more than can be addressed.
    pub fn bytes(&self, pages: usize, format: KvFormat) -> Option<usize> {
        let mut position = 0usize;
        for column in 0..self.columns.len() {
            position = position.checked_add(self.column_bytes(column, format)?)?;
        }
        position.checked_mul(PAGE)?.checked_mul(pages).filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// Bytes of one position in a column: of whichever layers there take the most. (Narrow heads have more
    /// scales of bytes.)
    fn column_bytes(&self, column: usize, format: KvFormat) -> Option<usize> {
        let mut most = format.position_bytes(self.columns[column])?;
        for place in self.layers.iter().filter(|place| place.column == column && place.of > 1) {
            most = most.max(format.position_bytes(place.shape)?.checked_mul(place.of)?);
        }
        Some(most)
    }

    /// The layers of a group, in the order of their places in a page.
    fn layers_of(&self, group: usize) -> impl Iterator<Item = usize> {
        let all = self.layers.iter().enumerate();
        let mut layers: Vec<(Place, usize)> =
            all.filter(|(_, place)| place.group == group).map(|(layer, place)| (*place, layer)).collect();
        layers.sort_unstable();
        layers.into_iter().map(|(_, layer)| layer)
    }
}

/// The layers by window, those that see everything first: whoever looks at one group looks at the longest.
/// Where they share columns, also by shape.
fn kinds(layers: &[(KvShape, Option<usize>)]) -> Vec<LayerKind> {
    let widest = layers.iter().map(|(shape, _)| *shape).max_by_key(|shape| shape.width());
    let of = |shape: KvShape| widest.and_then(|widest| Some((widest, widest.holds(shape)?)));
    let shared = layers.iter().all(|(shape, _)| of(*shape).is_some());
    let mut kinds: Vec<LayerKind> = Vec::new();
    for (index, &(shape, window)) in layers.iter().enumerate() {
        let column = of(shape).filter(|_| shared);
        match kinds.iter_mut().find(|kind| kind.window == window && kind.column == column) {
            Some(kind) => kind.members.push(index),
            None => kinds.push(LayerKind { window, column, members: vec![index] }),
        }
    }
    kinds.sort_by_key(|kind| kind.window.unwrap_or(0));
    kinds
}

/// Layers of a group, so that kinds of so many layers fill whole groups as well as may be: of the sizes with
/// few enough groups the one with the fewest empty places, the largest of those.
fn group_size(counts: &[usize]) -> usize {
    let most = counts.iter().copied().min().unwrap_or(1).max(1);
    let groups = |size: usize| counts.iter().map(|count| count.div_ceil(size)).sum::<usize>();
    let all: usize = counts.iter().sum();
    let empty = |size: usize| groups(size) * size - all;
    let largest = counts.iter().copied().max().unwrap_or(1);
    (1..=most)
        .rev()
        .filter(|&size| groups(size) <= MAX_GROUPS)
        .min_by_key(|&size| empty(size))
        // One odd layer among many: its groups have empty places rather than the many a table each.
        .unwrap_or_else(|| (most..=largest).find(|&size| groups(size) <= MAX_GROUPS).unwrap_or(largest))
}

/// Keys and values of all layers. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct KvCache {
    layout: Arc<KvLayout>,
    columns: Vec<LayerKv>,
    /// Each layer's part of its column.
    layers: Vec<LayerKv>,
    states: Vec<LayerState>,
    pages: usize,
    format: KvFormat,
}

/// Keys and values of one layer of a group.
#[derive(Clone, Debug)]
pub struct LayerKv {
    pub shape: KvShape,
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    Tensors(TensorKv),
    Native(NativeKv),
}

/// One layer's keys and values as tensors, each `[pages * of * PAGE, kv_heads * head_dim]` where `of` layers
/// lie side by side in a page.
#[derive(Clone, Debug)]
pub struct TensorKv {
    pub keys: Tensor,
    pub values: Tensor,
    number: usize,
    of: usize,
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

    /// Bytes of a page outside of the cache.
    fn page_bytes(&self) -> usize {
        match &self.store {
            Store::Tensors(_) => 2 * size_of::<f32>() * PAGE * self.shape.width(),
            Store::Native(kv) => kv.page_bytes(),
        }
    }

    /// As one of the layers sees it that lie side by side in this column.
    fn part(&self, place: &Place) -> Result<LayerKv> {
        let (shape, of, number) = (place.shape, place.of, place.number);
        let store = match &self.store {
            Store::Native(kv) => kv.part(shape, of, number).map(Store::Native),
            Store::Tensors(kv) => Some(Store::Tensors(kv.part(shape, of, number)?)),
        };
        let store = store.ok_or_else(|| Error::internal("a layer that does not fit its column"))?;
        Ok(LayerKv { shape, store })
    }
}

impl TensorKv {
    /// The same memory as one of `of` smaller layers sees it.
    fn part(&self, shape: KvShape, of: usize, number: usize) -> Result<TensorKv> {
        let dims = (self.keys.dim(0)? * of, shape.width());
        let (keys, values) = (self.keys.reshape(dims)?, self.values.reshape(dims)?);
        Ok(TensorKv { keys, values, number, of })
    }

    /// The row of a slot (`page * PAGE + position % PAGE`).
    pub fn row(&self, slot: usize) -> usize {
        (slot / PAGE * self.of + self.number) * PAGE + slot % PAGE
    }

    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        for tensor in [&self.keys, &self.values] {
            let rows = tensor.narrow(0, self.row(page as usize * PAGE), PAGE)?.to_dtype(DType::F32)?;
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
            tensor.slice_set(&rows.to_dtype(tensor.dtype())?, 0, self.row(page as usize * PAGE))?;
        }
        Ok(())
    }

    fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        for tensor in [&self.keys, &self.values] {
            // A copy of the page: source and target may not share their storage.
            let page = tensor.narrow(0, self.row(from as usize * PAGE), PAGE)?.copy()?;
            tensor.slice_set(&page, 0, self.row(to as usize * PAGE))?;
        }
        Ok(())
    }
}

impl KvCache {
    /// Tensors with room for `pages` pages.
    ///
    /// # Errors
    /// `OutOfMemory` when it cannot be had; the message says how much was asked for.
    pub fn new(layout: &KvLayout, pages: usize, dtype: DType, device: &Device) -> Result<Self> {
        let format = KvFormat::Tensors(dtype);
        let need = layout.bytes(pages, format).ok_or_else(|| too_large(usize::MAX, layout, pages))?;
        let too_large = || too_large(need, layout, pages);
        Self::with(layout, pages, format, |shape, _| {
            let dims = (pages * PAGE, shape.width());
            if device.is_cpu() {
                probe(dims.0 * dims.1 * dtype.size_in_bytes()).ok_or_else(too_large)?;
            }
            let zeros = || Tensor::zeros(dims, dtype, device).map_err(|e| too_large().with_source(e));
            Ok(Store::Tensors(TensorKv { keys: zeros()?, values: zeros()?, number: 0, of: 1 }))
        })
    }

    /// Pages for our CPU kernels.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn native(layout: &KvLayout, pages: usize, kind: KvType) -> Result<Self> {
        let format = KvFormat::Native(kind);
        let need = layout.bytes(pages, format).ok_or_else(|| too_large(usize::MAX, layout, pages))?;
        Self::with(layout, pages, format, |shape, page_bytes| {
            let kv = NativeKv::column(shape, pages, kind, page_bytes);
            let kv = kv.ok_or_else(|| too_large(need, layout, pages))?;
            Ok(Store::Native(kv))
        })
    }

    fn with(
        layout: &KvLayout,
        pages: usize,
        format: KvFormat,
        store: impl Fn(KvShape, Option<usize>) -> Result<Store>,
    ) -> Result<Self> {
        let column = |(number, &shape): (usize, &KvShape)| {
            let is_shared = layout.layers.iter().any(|place| place.column == number && place.of > 1);
            let page_bytes = is_shared.then(|| layout.column_bytes(number, format).unwrap_or(0) * PAGE);
            Ok(LayerKv { shape, store: store(shape, page_bytes)? })
        };
        let columns = layout.columns.iter().enumerate().map(column).collect::<Result<Vec<_>>>()?;
        let layers =
            layout.layers.iter().map(|place| columns[place.column].part(place)).collect::<Result<_>>()?;
        Ok(KvCache { layout: Arc::new(layout.clone()), columns, layers, states: vec![], pages, format })
    }

    /// The same with `slots` slots for the recurrent state of the layout's layers.
    ///
    /// # Errors
    /// `OutOfMemory` when they cannot be had.
    pub fn with_slots(self, slots: usize, device: &Device) -> Result<Self> {
        let too_large = || {
            Error::out_of_memory(format!(
                "{slots} slots of recurrent state, {} bytes each, cannot be had; load the model with a smaller \
                 kv_memory",
                self.layout.slot_bytes()
            ))
        };
        let state = |&len: &usize| match self.format {
            KvFormat::Native(_) => LayerState::native(slots, len).ok_or_else(too_large),
            KvFormat::Tensors(_) => LayerState::tensor(slots, len, device),
        };
        let states = self.layout.states.iter().map(state).collect::<Result<_>>()?;
        Ok(KvCache { states, ..self })
    }

    /// The states of one of the layers that have some.
    ///
    /// # Errors
    /// `Internal` when there is no such layer.
    pub fn state(&self, layer: usize) -> Result<&LayerState> {
        let missing =
            || Error::internal(format!("the cache has states of {} layers, not {layer}", self.states.len()));
        self.states.get(layer).ok_or_else(missing)
    }

    /// Slots that there are.
    pub fn slots(&self) -> usize {
        self.states.first().map_or(0, LayerState::slots)
    }

    /// Appends the state in `slot` to `out`: layer by layer, as little-endian f32.
    ///
    /// # Errors
    /// What the device says.
    pub fn read_state(&self, slot: u32, out: &mut Vec<u8>) -> Result<()> {
        self.states.iter().try_for_each(|state| state.read(slot, out))
    }

    /// Makes `slot` hold what [`read_state`](Self::read_state) gave.
    ///
    /// # Errors
    /// `Internal` if there are too few bytes; what the device says.
    pub fn write_state(&self, slot: u32, mut bytes: &[u8]) -> Result<()> {
        for state in &self.states {
            let (own, rest) = bytes
                .split_at_checked(state.state_len() * size_of::<f32>())
                .ok_or_else(|| Error::internal("a state has fewer bytes than its layers need"))?;
            bytes = rest;
            state.write(slot, own)?;
        }
        Ok(())
    }

    /// Which layer lies where.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Pages that there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// What it is made of.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Bytes of all columns together.
    pub fn bytes(&self) -> usize {
        self.layout.bytes(self.pages, self.format).unwrap_or(usize::MAX)
    }

    /// Layers with keys and values.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The layers whose keys and values a group's pages hold.
    fn layers_of(&self, group: usize) -> impl Iterator<Item = &LayerKv> {
        self.layout.layers_of(group).filter_map(|layer| self.layers.get(layer))
    }

    /// Bytes that [`read_page`](Self::read_page) gives: four for each number, or bytes as they are.
    pub fn page_bytes(&self, group: usize) -> usize {
        self.layers_of(group).map(LayerKv::page_bytes).sum()
    }

    /// Appends what lies in a page of a group to `out`: per layer keys, then values, as little-endian f32, or
    /// bytes and their scales.
    ///
    /// # Errors
    /// What the device says.
    pub fn read_page(&self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<()> {
        self.layers_of(group).try_for_each(|layer| match &layer.store {
            Store::Tensors(tensors) => tensors.read_page(page, out),
            Store::Native(kv) => kv.read_page(page, out),
        })
    }

    /// Makes a page of a group hold what [`read_page`](Self::read_page) gave.
    ///
    /// # Errors
    /// `Internal` if there are too few bytes; what the device says.
    pub fn write_page(&self, group: usize, page: u32, mut bytes: &[u8]) -> Result<()> {
        for layer in self.layers_of(group) {
            let (own, rest) = bytes
                .split_at_checked(layer.page_bytes())
                .ok_or_else(|| Error::internal("a page has fewer bytes than its layers need"))?;
            bytes = rest;
            match &layer.store {
                Store::Tensors(tensors) => tensors.write_page(page, own)?,
                Store::Native(kv) => kv.write_page(page, own)?,
            }
        }
        Ok(())
    }

    /// Copies page `from` over page `to`, in every column.
    ///
    /// # Errors
    /// `Internal` when one is missing; what the device says.
    pub fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        if from == to {
            return Ok(());
        }
        self.columns.iter().try_for_each(|column| match &column.store {
            Store::Tensors(tensors) => tensors.copy_page(from, to),
            Store::Native(kv) => kv.copy_page(from, to),
        })
    }

    /// The group of a layer: which of a span's page tables it reads.
    ///
    /// # Errors
    /// `Internal` when there is no such layer.
    pub fn group(&self, layer: usize) -> Result<usize> {
        self.layout.layers.get(layer).map(|place| place.group).ok_or_else(|| self.no_layer(layer))
    }

    /// The store of one layer.
    ///
    /// # Errors
    /// `Internal` when there is no such layer.
    pub fn layer(&self, layer: usize) -> Result<&LayerKv> {
        self.layers.get(layer).ok_or_else(|| self.no_layer(layer))
    }

    fn no_layer(&self, layer: usize) -> Error {
        Error::internal(format!("the KV cache has {} layers, not {layer}", self.layers()))
    }
}

fn foreign() -> Error {
    Error::internal("the KV cache was made by other Ops than those that use it")
}

/// Asks whether one allocation of this size is possible: the zeroed allocation itself would abort.
fn probe(bytes: usize) -> Option<()> {
    Vec::<u8>::new().try_reserve_exact(bytes).ok()
}

fn too_large(bytes: usize, layout: &KvLayout, pages: usize) -> Error {
    Error::out_of_memory(format!(
        "the KV cache of {pages} pages ({} positions in each of {} groups of layers) needs {:.1} GiB, which cannot \
         be had; load the model with a smaller kv_memory or context_length",
        pages.saturating_mul(PAGE) / layout.windows.len().max(1),
        layout.windows.len(),
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
        let cache =
            KvCache::native(&KvLayout::single(&[KvShape { kv_heads: 2, head_dim: 20 }]), 5, KvType::BF16)
                .unwrap();
        assert_eq!(cache.bytes(), 2 * 32 * 2 * 2 * PAGE * 5);
        let shape = KvShape { kv_heads: 3, head_dim: 64 };
        let [half, whole] = [KvType::I8, KvType::BF16].map(|kind| kind.position_bytes(shape).unwrap());
        assert_eq!((half, whole), (3 * (2 * 64 + 4), 3 * 2 * 64 * 2));
        let cache = KvCache::new(&KvLayout::single(&SHAPES), 5, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(cache.bytes(), (3 * 64 + 256) * 2 * 4 * PAGE * 5);
        assert_eq!((cache.pages(), cache.layers()), (5, 2));
        let layer = cache.layer(1).unwrap().tensors().unwrap();
        assert_eq!(layer.keys.dims(), [5 * PAGE, 256]);
        assert_eq!(layer.values.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert_eq!(cache.layer(1).unwrap().native().unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(cache.layer(2).unwrap_err().kind(), ErrorKind::Internal);
    }

    /// Windows of the layers -> columns, and the layers of each group.
    #[test]
    fn layers_of_one_kind_form_groups_of_one_size() {
        let shape = KvShape { kv_heads: 1, head_dim: 16 };
        let every = |n: usize, count: usize| {
            (0..count).map(|at| (shape, (at % n < n - 1).then_some(512))).collect::<Vec<_>>()
        };
        for (what, layers, columns, groups) in [
            ("all see everything", every(1, 4), 4, vec![4]),
            ("all have a window", vec![(shape, Some(9)); 3], 3, vec![3]),
            ("every other", every(2, 8), 4, vec![4, 4]),
            ("every sixth, Gemma 3 270M", every(6, 18), 3, vec![3; 6]),
            ("every sixth, Gemma 3 1B", every(6, 26), 4, vec![4, 4, 4, 4, 4, 4, 2]),
            ("every fourth", every(4, 12), 3, vec![3; 4]),
            ("one of many", every(30, 30), 4, vec![1, 4, 4, 4, 4, 4, 4, 4, 1]),
            ("none", vec![], 0, vec![]),
        ] {
            let layout = KvLayout::new(&layers);
            let count = |group| layout.layers.iter().filter(|place| place.group == group).count();
            let found: Vec<usize> = (0..layout.windows.len()).map(count).collect();
            assert_eq!((layout.columns.len(), &found), (columns, &groups), "{what}");
            for (at, (_, window)) in layers.iter().enumerate() {
                assert_eq!(layout.windows[layout.layers[at].group], *window, "{what}: layer {at}");
            }
            let mut places = layout.layers.clone();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), layers.len(), "{what}: two layers in one place");
        }
        // Shapes that no column holds a whole number of have columns of their own, in one group.
        let odd = KvShape { kv_heads: 1, head_dim: 48 };
        let wide = KvShape { kv_heads: 1, head_dim: 32 };
        let layout = KvLayout::new(&[(odd, Some(8)), (wide, None), (odd, Some(8)), (wide, None)]);
        assert_eq!((layout.columns.len(), layout.windows.len()), (4, 2));
    }

    /// Gemma 4: heads of 512 that see everything among those of 256 with a window.
    #[test]
    fn layers_of_other_shapes_share_columns() {
        let shape = |kv_heads, head_dim| KvShape { kv_heads, head_dim };
        let layers = |n: usize, count, full: KvShape, local: KvShape| -> Vec<_> {
            let is_full = |at: usize| at % n == n - 1;
            (0..count).map(|at| if is_full(at) { (full, None) } else { (local, Some(512)) }).collect()
        };
        for (what, layers, wide, columns, groups) in [
            ("E2B", layers(5, 15, shape(1, 512), shape(1, 256)), shape(1, 512), 3, vec![3, 6, 6]),
            ("26B", layers(6, 30, shape(2, 512), shape(8, 256)), shape(8, 256), 3, vec![5, 3, 3, 3, 3]),
        ] {
            let layout = KvLayout::new(&layers);
            let count = |group| layout.layers_of(group).count();
            let found: Vec<usize> = (0..layout.windows.len()).map(count).take(groups.len()).collect();
            assert_eq!((&layout.columns, &found), (&vec![wide; columns], &groups), "{what}");
            let mut places = layout.layers.clone();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), layers.len(), "{what}: two layers in one place");
        }
    }

    fn caches(pages: usize) -> Vec<KvCache> {
        let tensors = [DType::F32, DType::BF16]
            .map(|t| KvCache::new(&KvLayout::single(&SHAPES), pages, t, &Device::Cpu));
        let native = [KvType::F32, KvType::BF16, KvType::I8]
            .map(|kind| KvCache::native(&KvLayout::single(&SHAPES), pages, kind));
        tensors.into_iter().chain(native).map(|cache| cache.unwrap()).collect()
    }

    #[test]
    fn a_page_goes_out_and_comes_back() {
        for cache in caches(3) {
            let format = cache.format();
            // Small whole numbers, which bf16 holds exactly.
            let numbers = (0..cache.page_bytes(0) / 4).map(|at| (at % 250) as f32);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            cache.write_page(0, 1, &bytes).unwrap();
            let mut found = Vec::new();
            for (page, wanted) in [(0, false), (1, true), (2, false)] {
                found.clear();
                cache.read_page(0, page, &mut found).unwrap();
                match wanted {
                    true => assert!(found == bytes, "{format:?}"),
                    false => assert!(found.iter().all(|&byte| byte == 0), "{format:?}"),
                }
            }
            cache.copy_page(1, 2).unwrap();
            found.clear();
            cache.read_page(0, 2, &mut found).unwrap();
            assert!(found == bytes, "{format:?}");
            assert_eq!(cache.write_page(0, 1, &bytes[1..]).unwrap_err().kind(), ErrorKind::Internal);
        }
    }

    #[test]
    fn layers_side_by_side_keep_their_own() {
        let [wide, narrow] = [16, 8].map(|head_dim| KvShape { kv_heads: 2, head_dim });
        // Padded to 16 dimensions they are as wide, so that only wider ones share.
        assert_eq!(wide.holds(narrow), None);
        let [wide, narrow] = [64, 16].map(|head_dim| KvShape { kv_heads: 2, head_dim });
        assert_eq!(wide.holds(narrow), Some(4));
        let mut layers = vec![(wide, None)];
        layers.extend([(narrow, Some(8)); 4]);
        let layout = KvLayout::new(&layers);
        assert_eq!((layout.columns.len(), layout.windows.len()), (1, 2));
        let native = |kind| KvCache::native(&layout, 3, kind).unwrap();
        // Four narrow layers have four times the scales of a wide one, and make the page longer.
        assert_eq!(native(KvType::I8).bytes(), 3 * 4 * 2 * PAGE * (2 * 16 + 4));
        let tensors = KvCache::new(&layout, 3, DType::F32, &Device::Cpu).unwrap();
        for cache in [native(KvType::BF16), native(KvType::I8), tensors] {
            let page = |from: usize, group| -> Vec<u8> {
                let numbers = (0..cache.page_bytes(group) / 4).map(|at| (from + at % 200) as f32);
                numbers.flat_map(f32::to_le_bytes).collect()
            };
            let (full, local) = (page(0, 0), page(50, 1));
            cache.write_page(0, 2, &full).unwrap();
            cache.write_page(1, 1, &local).unwrap();
            cache.copy_page(1, 0).unwrap();
            for (group, page, wanted) in [(0, 2, &full), (1, 1, &local), (1, 0, &local)] {
                let mut found = Vec::new();
                cache.read_page(group, page, &mut found).unwrap();
                assert!(found == *wanted, "{:?}: page {page}", cache.format());
            }
        }
    }

    #[test]
    fn an_absurd_size_is_an_error_and_not_an_abort() {
        for pages in [usize::MAX, usize::MAX / 64, 1 << 50] {
            for error in [
                KvCache::new(&KvLayout::single(&SHAPES), pages, DType::F32, &Device::Cpu).unwrap_err(),
                KvCache::native(&KvLayout::single(&SHAPES), pages, KvType::BF16).unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{pages}: {error}");
            }
        }
    }
}
