//! An adapter held against a decoder: every module finds its projection, every shape is compared, and what is
//! in one matrix in the file is cut where the decoder has two.

mod tiled;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use self::tiled::TiledHeads;
use super::{AdapterFile, AdapterFormat, Module, Pair, Table};
use crate::config::{Config, MixerConfig};
use crate::error::{Error, Result};
use crate::kernels::{Linear, LowRank, Matrix, Ops, Vector};
use crate::model::Decoder;
use crate::model::build::head_rows;
use crate::model::projection::ProjectionId;
use crate::weights::WeightTensor;
use crate::weights::names::Part;

/// An adapter as the decoder takes it; by default one that changes nothing.
#[derive(Default)]
pub struct BoundAdapter {
    /// By layer; those of a layer ascend by part.
    pub(super) layers: Vec<Vec<(Part, LowRank)>>,
    pub(super) head: Option<LowRank>,
    pub(super) embedding: Option<EmbeddingChange>,
    pub(super) head_change: Option<HeadChange>,
    rank: usize,
    targets: Vec<String>,
    bytes: usize,
    notes: Vec<String>,
}

/// What becomes of embeddings. Rows of a token: those of `rows`, else of `table`, else of the base; then what
/// is of low rank is added.
#[derive(Default)]
pub(super) struct EmbeddingChange {
    pub rows: HashMap<u32, Vec<f32>>,
    pub table: Option<Table>,
    /// A on its side, `[vocab, rank]`, and B `[hidden, rank]`, which the scale is part of.
    pub low_rank: Option<(Table, Table)>,
}

/// What becomes of logits.
#[derive(Default)]
pub(super) struct HeadChange {
    /// Instead of the head.
    pub table: Option<Linear>,
    /// Rows of the head by token, and the head's bias.
    pub rows: Vec<(u32, Vec<f32>)>,
    pub bias: Option<Vector>,
}

impl BoundAdapter {
    /// What the adapter adds to a projection.
    pub fn low_rank(&self, id: ProjectionId) -> Option<&LowRank> {
        if id == ProjectionId::HEAD {
            return self.head.as_ref();
        }
        let layer = self.layers.get(id.layer)?;
        let at = layer.binary_search_by(|(part, _)| part.cmp(&id.part)).ok()?;
        Some(&layer[at].1)
    }

    /// The largest rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The modules that it changes, as its file calls them, without their layers.
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is worth knowing of how it was bound.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Holds `file` against `decoder`; everything it adds is multiplied by `scale`. Factors are kept in
    /// bfloat16 unless the decoder computes exactly.
    ///
    /// # Errors
    /// `UnsupportedModel` naming the module for what has no counterpart here; `ModelFile` for shapes of
    /// another base.
    pub fn bind(file: &AdapterFile, decoder: &Decoder, scale: f32) -> Result<BoundAdapter> {
        Self::bind_as(file, decoder, scale, decoder.ops().is_exact())
    }

    /// As [`bind`](Self::bind), with factors in f32.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_exactly(file: &AdapterFile, decoder: &Decoder, scale: f32) -> Result<BoundAdapter> {
        Self::bind_as(file, decoder, scale, true)
    }

    fn bind_as(file: &AdapterFile, decoder: &Decoder, scale: f32, exact: bool) -> Result<BoundAdapter> {
        if !scale.is_finite() {
            return Err(Error::invalid(format!("scale is {scale}; it must be a finite number")));
        }
        let mut binder = Binder::new(file, decoder, scale, exact);
        for module in &file.modules {
            binder.bind(module).map_err(|error| binder.about(error, module))?;
        }
        binder.bound.targets.sort();
        Ok(binder.bound)
    }
}

/// Rows of a matrix of the file that are those of a projection.
struct Piece {
    id: ProjectionId,
    /// Of the file's matrix, in the order of the projection's.
    rows: Vec<usize>,
}

/// What a module does to one projection, collected before it becomes a [`LowRank`].
struct Changes<'a> {
    pair: Option<Cut<'a>>,
    magnitude: Option<Vec<f32>>,
    lora_bias: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

/// The pair of a piece: A whole, of B its rows.
struct Cut<'a> {
    a: Cow<'a, [f32]>,
    b: Vec<f32>,
    rank: usize,
    scale: f32,
}

struct Binder<'a> {
    file: &'a AdapterFile,
    decoder: &'a Decoder,
    config: &'a Config,
    ops: &'a Ops,
    projections: BTreeMap<ProjectionId, &'a Linear>,
    scale: f32,
    exact: bool,
    bound: BoundAdapter,
}

impl<'a> Binder<'a> {
    fn new(file: &'a AdapterFile, decoder: &'a Decoder, scale: f32, exact: bool) -> Self {
        let layers = decoder.config().layers.iter().map(|_| Vec::new()).collect();
        let bound = BoundAdapter { layers, ..BoundAdapter::default() };
        let projections = decoder.adaptable().collect();
        let (config, ops) = (decoder.config(), decoder.ops());
        Binder { file, decoder, config, ops, projections, scale, exact, bound }
    }

    /// Where an error is, and what the adapter says it was made for.
    fn about(&self, error: Error, module: &Module) -> Error {
        let base = self.file.base.as_ref().map_or(String::new(), |base| format!(", made for {base}"));
        error.context(format!("{}{base}: {}", self.file.source.display(), module.name))
    }

    fn bind(&mut self, module: &Module) -> Result<()> {
        let last = module.name.rsplit('.').next().unwrap_or(&module.name).to_string();
        if !self.bound.targets.contains(&last) {
            self.bound.targets.push(last);
        }
        self.bound.rank = module.pairs.iter().map(|pair| pair.rank).fold(self.bound.rank, usize::max);
        self.check_whole(module)?;
        match (module.layer, module.part) {
            (None, Part::Embed) => self.embedding(module),
            (None, Part::Head) => self.head(module),
            (Some(layer), _) if layer < self.config.layers.len() => {
                if module.rows.is_some() {
                    return Err(no_counterpart());
                }
                self.layer(layer, module)
            }
            (Some(layer), _) => Err(Error::model_file(format!(
                "there is no layer {layer}: the model has {}; the adapter was made for another one",
                self.config.layers.len()
            ))),
            (None, _) => Err(no_counterpart()),
        }
    }

    /// What stands in place of the base's own numbers cannot be taken in part.
    fn check_whole(&self, module: &Module) -> Result<()> {
        let whole = module.bias.is_some() || module.weight.is_some() && module.pairs.is_empty();
        match (whole || module.rows.is_some()) && self.scale != 1.0 {
            false => Ok(()),
            true => Err(Error::invalid(format!(
                "scale is {}, and this module has numbers in place of the base's (a bias, a matrix or rows), which \
                 have no scale; load it with scale 1",
                self.scale
            ))),
        }
    }

    fn layer(&mut self, layer: usize, module: &Module) -> Result<()> {
        if module.weight.is_some() && !module.pairs.is_empty() {
            return Err(Error::unsupported(
                "a whole matrix beside A and B is supported of embedding and head alone",
            ));
        }
        if let (Some(table), None) = (&module.weight, module.pairs.first()) {
            return self.replaced(layer, module, table);
        }
        if module.pairs.len() > 1 || is_stack(module.part) {
            return self.experts(layer, module);
        }
        let outputs = outputs(module).ok_or_else(|| Error::model_file("it changes nothing"))?;
        let pieces = self.pieces(layer, module, outputs)?;
        if module.magnitude.is_some() && pieces.iter().any(|piece| piece.id.part == Part::Router) {
            return Err(Error::unsupported("DoRA of a router is not supported"));
        }
        for piece in pieces {
            let rows = |vector: &Option<Vec<f32>>| vector.as_ref().map(|vector| select(vector, &piece.rows));
            let pair = module.pairs.first();
            let columns = self.tiled_heads(layer).filter(|_| piece.id.part == Part::SsmOut);
            let mut pair_of_piece = pair.map(|pair| cut(pair, &piece.rows));
            if let (Some(heads), Some(cut)) = (columns, &mut pair_of_piece) {
                cut.a = heads.columns(&cut.a).into();
            }
            let changes = Changes {
                pair: pair_of_piece,
                magnitude: rows(&module.magnitude),
                lora_bias: rows(&module.lora_bias),
                bias: rows(&module.bias),
            };
            if let Some(pair) = pair {
                self.check_shape(piece.id, [piece.rows.len(), pair.inputs])?;
            }
            self.put(piece.id, changes)?;
        }
        Ok(())
    }

    /// A projection whose whole matrix is another one (modules_to_save): what the two differ by has full
    /// rank, so that A is the identity. It costs as much as the projection, or twice that; few adapters have
    /// it.
    fn replaced(&mut self, layer: usize, module: &Module, table: &Table) -> Result<()> {
        for piece in self.pieces(layer, module, table.rows)? {
            self.check_shape(piece.id, [piece.rows.len(), table.columns])?;
            let linear = *self.projections.get(&piece.id).ok_or_else(no_counterpart)?;
            let k = table.columns;
            let mut b = Vec::with_capacity(piece.rows.len() * k);
            for rows in chunks(piece.rows.len()) {
                let ids: Vec<u32> = rows.clone().map(|row| row as u32).collect();
                let own = self.ops.into_vec(self.ops.embed(&linear.weight, &ids, Some(linear.scale))?)?;
                for (row, own) in rows.zip(own.chunks_exact(k)) {
                    let its = &table.values[piece.rows[row] * k..][..k];
                    b.extend(its.iter().zip(own).map(|(its, own)| its - own));
                }
            }
            let identity = (0..k * k).map(|at| f32::from(u8::from(at % (k + 1) == 0))).collect::<Vec<_>>();
            let pair = Some(Cut { a: identity.into(), b, rank: k, scale: 1.0 });
            let bias = module.bias.as_ref().map(|bias| select(bias, &piece.rows));
            self.put(piece.id, Changes { pair, magnitude: None, lora_bias: None, bias })?;
        }
        Ok(())
    }

    /// Which projections a module of a layer is about.
    fn pieces(&self, layer: usize, module: &Module, outputs: usize) -> Result<Vec<Piece>> {
        let id = |part| ProjectionId { layer, part };
        let height = |part| self.projections.get(&id(part)).map(|linear| linear.weight.n());
        let fused: &[Part] = match module.part {
            Part::Qkv => &[Part::Q, Part::K, Part::V],
            Part::GateUp => &[Part::Gate, Part::Up],
            // Phi-3's GGUF calls both together so.
            Part::Up if height(Part::Gate).is_some_and(|gate| outputs == 2 * gate) => &[Part::Gate, Part::Up],
            Part::SharedGateUp => &[Part::SharedGate, Part::SharedUp],
            Part::SsmIn => &[Part::SsmZ, Part::SsmXbc, Part::SsmDt],
            Part::Q
                if height(Part::AttnGate)
                    .is_some_and(|gate| Some(outputs) == height(Part::Q).map(|q| q + gate)) =>
            {
                return self.query_and_gate(layer, outputs);
            }
            _ => &[],
        };
        let parts = if fused.is_empty() { std::slice::from_ref(&module.part) } else { fused };
        self.check_order(layer, module)?;
        let (mut pieces, mut start) = (Vec::new(), 0);
        for &part in parts {
            let rows = height(part).ok_or_else(no_counterpart)?;
            let end = start + rows;
            if end > outputs {
                break;
            }
            let order = self.order(layer, part, module, rows);
            pieces.push(Piece { id: id(part), rows: order.into_iter().map(|row| start + row).collect() });
            start = end;
        }
        match start == outputs && pieces.len() == parts.len() {
            true => Ok(pieces),
            false => {
                let heights: Vec<_> = parts.iter().filter_map(|part| height(*part)).collect();
                Err(other_shape(&format!("{outputs} outputs"), &format!("{heights:?}")))
            }
        }
    }

    /// Some checkpoints order rows in a way that is not undone here.
    fn check_order(&self, layer: usize, module: &Module) -> Result<()> {
        let mixer = self.config.layers[layer].mixer.as_ref();
        let latent = [Part::Q, Part::QueryB, Part::LatentA];
        match mixer {
            Some(MixerConfig::Latent(config)) if config.interleaved && latent.contains(&module.part) => {
                Err(Error::unsupported(
                    "adapters of latent attention whose dimensions turn in pairs are not supported",
                ))
            }
            _ => Ok(()),
        }
    }

    /// The file's row of each row of a projection.
    fn order(&self, layer: usize, part: Part, module: &Module, rows: usize) -> Vec<usize> {
        if let Some(order) = self.tiled_heads(layer) {
            let moved = order.rows(part, rows);
            return moved.unwrap_or_else(|| (0..rows).collect());
        }
        let attention = self.config.layers[layer].mixer.as_ref().and_then(MixerConfig::attention);
        let heads = attention.and_then(|attention| match part {
            Part::Q => Some(attention.heads),
            Part::K => Some(attention.kv_heads),
            _ => None,
        });
        let pairs = match self.file.format {
            AdapterFormat::Gguf => module.interleaved,
            AdapterFormat::Peft | AdapterFormat::Mlx | AdapterFormat::Trained => {
                self.config.interleaved_in_transformers
            }
        };
        match heads.filter(|_| pairs) {
            Some(heads) => head_rows(self.config, rows, heads),
            None => (0..rows).collect(),
        }
    }

    /// How a model from GGUF has the heads of a layer's linear attention, if that is another order than that
    /// of the adapter.
    fn tiled_heads(&self, layer: usize) -> Option<TiledHeads> {
        match self.config.layers[layer].mixer.as_ref() {
            Some(MixerConfig::DeltaNet(config))
                if config.tiled && self.file.format != AdapterFormat::Gguf =>
            {
                Some(TiledHeads {
                    groups: config.key_heads,
                    heads: config.value_heads,
                    keys: config.key_heads * config.key_dim,
                    value_dim: config.value_dim,
                })
            }
            _ => None,
        }
    }

    /// A query's rows, and those of its gate between them.
    fn query_and_gate(&self, layer: usize, outputs: usize) -> Result<Vec<Piece>> {
        let attention = self.config.layers[layer].mixer.as_ref().and_then(MixerConfig::attention);
        let width = attention.map(|attention| attention.head_dim).ok_or_else(no_counterpart)?;
        let of = |second: usize, part| Piece {
            id: ProjectionId { layer, part },
            rows: (0..outputs).filter(|row| row / width % 2 == second).collect(),
        };
        Ok(vec![of(0, Part::Q), of(1, Part::AttnGate)])
    }

    /// A pair for each expert of a layer.
    fn experts(&mut self, layer: usize, module: &Module) -> Result<()> {
        let count = self
            .projections
            .range(ProjectionId { layer, part: Part::ExpertUp(0) }..)
            .take_while(|(id, _)| id.layer == layer && matches!(id.part, Part::ExpertUp(_)));
        let count = count.count();
        if module.pairs.len() != count {
            return Err(other_shape(&format!("{} experts", module.pairs.len()), &count.to_string()));
        }
        if module.magnitude.is_some() || module.lora_bias.is_some() || module.bias.is_some() {
            return Err(Error::unsupported("of experts, only plain LoRA is supported"));
        }
        // The outputs of gate and up alternate (gpt-oss).
        let alternate =
            self.config.experts_alternate_in_transformers && self.file.format == AdapterFormat::Peft;
        for (expert, pair) in module.pairs.iter().enumerate() {
            let half = pair.outputs / 2;
            let every_other = |first| (first..pair.outputs).step_by(2).collect::<Vec<_>>();
            let parts = match (module.part, alternate) {
                (Part::GateUpExperts, true) => {
                    vec![(Part::ExpertGate(expert), every_other(0)), (Part::ExpertUp(expert), every_other(1))]
                }
                (Part::GateUpExperts, false) => vec![
                    (Part::ExpertGate(expert), (0..half).collect()),
                    (Part::ExpertUp(expert), (half..pair.outputs).collect()),
                ],
                (Part::GateExperts, _) => vec![(Part::ExpertGate(expert), (0..pair.outputs).collect())],
                (Part::UpExperts, _) => vec![(Part::ExpertUp(expert), (0..pair.outputs).collect())],
                (Part::DownExperts, _) => vec![(Part::ExpertDown(expert), (0..pair.outputs).collect())],
                _ => return Err(no_counterpart()),
            };
            for (part, rows) in parts {
                let id = ProjectionId { layer, part };
                self.check_shape(id, [rows.len(), pair.inputs])?;
                let pair = Some(cut(pair, &rows));
                self.put(id, Changes { pair, magnitude: None, lora_bias: None, bias: None })?;
            }
        }
        Ok(())
    }

    fn check_shape(&self, id: ProjectionId, shape: [usize; 2]) -> Result<()> {
        let linear = self.projections.get(&id).ok_or_else(no_counterpart)?;
        let own = [linear.weight.n(), linear.weight.k()];
        match own == shape {
            true => Ok(()),
            false => Err(other_shape(&format!("{shape:?}"), &format!("{own:?}"))),
        }
    }

    fn put(&mut self, id: ProjectionId, changes: Changes<'_>) -> Result<()> {
        let linear = *self.projections.get(&id).ok_or_else(no_counterpart)?;
        let low_rank = self.low_rank(linear, changes)?;
        self.bound.bytes += low_rank.bytes();
        if id == ProjectionId::HEAD {
            self.bound.head = Some(low_rank);
            return Ok(());
        }
        let layer = &mut self.bound.layers[id.layer];
        match layer.binary_search_by(|(part, _)| part.cmp(&id.part)) {
            Ok(_) => Err(Error::model_file("two modules of the adapter change the same projection")),
            Err(at) => {
                layer.insert(at, (id.part, low_rank));
                Ok(())
            }
        }
    }

    fn low_rank(&self, linear: &Linear, changes: Changes<'_>) -> Result<LowRank> {
        let [n, k] = [linear.weight.n(), linear.weight.k()];
        let Changes { pair, magnitude, lora_bias, bias } = changes;
        let factor = pair.as_ref().map_or(self.scale, |pair| pair.scale * self.scale);
        let (a, mut b) = match &pair {
            Some(pair) => (pair.a.to_vec(), pair.b.clone()),
            None => (Vec::new(), Vec::new()),
        };
        b.iter_mut().for_each(|weight| *weight *= factor);
        let rank = pair.as_ref().map_or(0, |pair| pair.rank);
        let gain = match magnitude {
            Some(magnitude) => Some(self.gain(linear, &magnitude, (&a, &b, rank))?),
            None => None,
        };
        let mut shift = vec![0.0; n];
        if let Some(lora_bias) = &lora_bias {
            shift.iter_mut().zip(lora_bias).for_each(|(shift, bias)| *shift += factor * bias);
            if let Some(gain) = &gain {
                shift.iter_mut().zip(gain).for_each(|(shift, gain)| *shift *= gain);
            }
        }
        if let Some(bias) = &bias {
            let own = linear.bias.as_ref().map(Vector::values);
            for (at, shift) in shift.iter_mut().enumerate() {
                *shift += bias[at] - own.map_or(0.0, |own| own[at]);
            }
        }
        let shift = (lora_bias.is_some() || bias.is_some()).then_some(shift);
        // The product's factor is for all that is in the sum, and the delta is none of the weights'.
        // (Where the model has such factors of its own, the delta has them too.)
        if linear.scale != 1.0 && self.config.weight_scales.is_empty() {
            b.iter_mut().for_each(|weight| *weight /= linear.scale);
        }
        LowRank::new([n, k], a, &b, gain, shift, self.exact)
    }

    /// DoRA (Liu et al. 2024): what each output is multiplied by, `magnitude / |W + scale B A|`.
    fn gain(
        &self,
        linear: &Linear,
        magnitude: &[f32],
        (a, b, rank): (&[f32], &[f32], usize),
    ) -> Result<Vec<f32>> {
        let k = linear.weight.k();
        let mut gain = Vec::with_capacity(magnitude.len());
        for rows in chunks(magnitude.len()) {
            let ids: Vec<u32> = rows.clone().map(|row| row as u32).collect();
            let weights = self.ops.into_vec(self.ops.embed(&linear.weight, &ids, None)?)?;
            for (row, weights) in rows.zip(weights.chunks_exact(k)) {
                let mut changed: Vec<f32> = weights.iter().map(|weight| weight * linear.scale).collect();
                for (a, b) in a.chunks_exact(k).zip(&b[row * rank..(row + 1) * rank]) {
                    changed.iter_mut().zip(a).for_each(|(sum, a)| *sum += a * b);
                }
                let norm = changed.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
                gain.push(magnitude[row] / norm);
            }
        }
        match gain.iter().all(|gain| gain.is_finite()) {
            true => Ok(gain),
            false => {
                Err(Error::model_file("DoRA divides by the length of an output's weights, and one is 0"))
            }
        }
    }

    fn embedding(&mut self, module: &Module) -> Result<()> {
        if module.magnitude.is_some() || module.lora_bias.is_some() || module.bias.is_some() {
            return Err(Error::unsupported("of the embedding, only plain LoRA is supported"));
        }
        let matrix = self.decoder.embedding_matrix();
        let [vocab, hidden] = [matrix.n(), matrix.k()];
        let mut change = self.bound.embedding.take().unwrap_or_default();
        if let Some((tokens, rows)) = &module.rows {
            self.check_table(rows, [tokens.len(), hidden])?;
            check_tokens(tokens, vocab)?;
            for (token, row) in tokens.iter().zip(rows.values.chunks_exact(hidden)) {
                change.rows.insert(*token, row.to_vec());
            }
            if self.decoder.is_tied() {
                let bias = self.projections.get(&ProjectionId::HEAD).and_then(|head| head.bias.clone());
                let head = self.bound.head_change.get_or_insert_default();
                head.bias = bias;
                let rows = tokens.iter().zip(rows.values.chunks_exact(hidden));
                head.rows.extend(rows.map(|(token, row)| (*token, row.to_vec())));
            }
        }
        if let Some(table) = &module.weight {
            self.check_table(table, [vocab, hidden])?;
            if module.pairs.is_empty() {
                change.table = Some(table.clone());
            } else {
                self.check_same(self.decoder.embedding_matrix(), table)?;
            }
        }
        if let Some(pair) = module.pairs.first() {
            if [pair.outputs, pair.inputs] != [hidden, vocab] {
                return Err(other_shape(
                    &format!("{:?}", [pair.outputs, pair.inputs]),
                    &format!("{:?}", [hidden, vocab]),
                ));
            }
            let factor = pair.scale * self.scale;
            let b = pair.b.iter().map(|weight| weight * factor).collect();
            let a = Table { rows: pair.rank, columns: vocab, values: pair.a.clone() }.transposed();
            change.low_rank = Some((a, Table { rows: hidden, columns: pair.rank, values: b }));
        }
        self.bound.bytes +=
            4 * (change.rows.len() * hidden + change.table.as_ref().map_or(0, |t| t.values.len()));
        self.bound.bytes += 4 * change.low_rank.as_ref().map_or(0, |(a, b)| a.values.len() + b.values.len());
        self.bound.embedding = Some(change);
        Ok(())
    }

    fn head(&mut self, module: &Module) -> Result<()> {
        let head = *self.projections.get(&ProjectionId::HEAD).ok_or_else(no_counterpart)?;
        let shape = [head.weight.n(), head.weight.k()];
        if let Some((tokens, rows)) = &module.rows {
            self.check_table(rows, [tokens.len(), shape[1]])?;
            check_tokens(tokens, shape[0])?;
            let rows = tokens.iter().zip(rows.values.chunks_exact(shape[1]));
            let rows = rows.map(|(token, row)| (*token, row.to_vec()));
            let change = self.bound.head_change.get_or_insert_default();
            change.rows.extend(rows);
            change.bias = head.bias.clone();
        }
        if let Some(table) = &module.weight {
            self.check_table(table, shape)?;
            if module.pairs.is_empty() {
                let name = format!("{}.weight", module.name);
                let tensor = WeightTensor::floats(&name, shape.to_vec(), table.values.clone());
                let weight = self.ops.matrix(&tensor)?;
                let table = Linear { weight, scale: 1.0, bias: head.bias.clone(), outlier: head.outlier };
                self.bound.bytes += 4 * shape[0] * shape[1];
                self.bound.head_change.get_or_insert_default().table = Some(table);
            } else {
                self.check_same(&head.weight, table)?;
            }
        }
        if let Some(pair) = module.pairs.first() {
            self.check_shape(ProjectionId::HEAD, [pair.outputs, pair.inputs])?;
        }
        if module.pairs.is_empty() && module.bias.is_none() {
            return Ok(());
        }
        if let Some(bias) = module.bias.as_ref().filter(|bias| bias.len() != shape[0]) {
            return Err(other_shape(&format!("a bias of {}", bias.len()), &shape[0].to_string()));
        }
        let all: Vec<usize> = (0..shape[0]).collect();
        let changes = Changes {
            pair: module.pairs.first().map(|pair| cut(pair, &all)),
            magnitude: module.magnitude.clone(),
            lora_bias: module.lora_bias.clone(),
            bias: module.bias.clone(),
        };
        self.put(ProjectionId::HEAD, changes)
    }

    fn check_table(&self, table: &Table, [rows, columns]: [usize; 2]) -> Result<()> {
        if [table.rows, table.columns] == [rows, columns] {
            return Ok(());
        }
        let error =
            other_shape(&format!("{:?}", [table.rows, table.columns]), &format!("{:?}", [rows, columns]));
        match table.columns == columns && table.rows != rows && rows == self.config.vocab {
            true => Err(Error::unsupported(format!(
                "the adapter resized the vocabulary from {rows} to {} tokens, which is not supported; merge it into \
                 its base with peft and load the result",
                table.rows
            ))),
            false => Err(error),
        }
    }

    /// The base's matrix, which an adapter's file repeats: the same, but for what quantization took.
    fn check_same(&mut self, matrix: &Matrix, table: &Table) -> Result<()> {
        let (mut off, mut all) = (0.0, 0.0);
        for rows in chunks(matrix.n()) {
            let ids: Vec<u32> = rows.clone().map(|row| row as u32).collect();
            let own = self.ops.into_vec(self.ops.embed(matrix, &ids, None)?)?;
            let its = &table.values[rows.start * table.columns..rows.end * table.columns];
            for (own, its) in own.iter().zip(its) {
                off += f64::from(own - its).powi(2);
                all += f64::from(*its).powi(2);
            }
        }
        let share = (off / all.max(f64::MIN_POSITIVE)).sqrt();
        if share > SAME {
            return Err(Error::unsupported(format!(
                "the adapter's file holds the base's matrix (base_layer.weight), and it is another one than this model's \
                 (they differ by {:.0} %): the adapter belongs to another base",
                100.0 * share
            )));
        }
        if share > 0.01 {
            let note = "the base's matrix in the adapter's file is not taken: this model has it quantized";
            self.bound.notes.push(note.into());
        }
        Ok(())
    }
}

/// How far apart two forms of one matrix may be, relative to its size: 4 bits take some 10 %.
const SAME: f64 = 0.25;

fn is_stack(part: Part) -> bool {
    matches!(part, Part::GateUpExperts | Part::GateExperts | Part::UpExperts | Part::DownExperts)
}

/// Outputs of a module's matrix, whichever of its tensors tells.
fn outputs(module: &Module) -> Option<usize> {
    let vectors = [&module.magnitude, &module.lora_bias, &module.bias];
    let vector = vectors.into_iter().flatten().map(Vec::len).next();
    module.pairs.first().map(|pair| pair.outputs).or(vector)
}

fn cut<'a>(pair: &'a Pair, rows: &[usize]) -> Cut<'a> {
    let b = rows.iter().flat_map(|row| &pair.b[row * pair.rank..(row + 1) * pair.rank]).copied().collect();
    Cut { a: Cow::Borrowed(&pair.a), b, rank: pair.rank, scale: pair.scale }
}

fn select(vector: &[f32], rows: &[usize]) -> Vec<f32> {
    rows.iter().map(|row| vector[*row]).collect()
}

/// Rows of a matrix that are looked at together.
fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(256).map(move |start| start..rows.min(start + 256))
}

fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|token| **token as usize >= vocab) {
        Some(token) => Err(Error::model_file(format!("token {token} is not in the vocabulary of {vocab}"))),
        None => Ok(()),
    }
}

fn no_counterpart() -> Error {
    Error::unsupported("the model has no such module, or one that adapters cannot change here")
}

fn other_shape(its: &str, own: &str) -> Error {
    Error::model_file(format!(
        "the adapter has {its} where the model has {own}; it was made for another model"
    ))
}
