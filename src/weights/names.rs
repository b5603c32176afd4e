//! One name for each part of a decoder, whatever the checkpoint calls it.
//!
//! Two naming worlds are known: the modules of transformers (`model.layers.0.self_attn.q_proj.weight`) and
//! GGUF (`blk.0.attn_q.weight`). A new family is a spelling in [`TABLE`], never code elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Weights;
use crate::error::{Error, Result, quoted};

/// A part of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Embed,
    Head,
    FinalNorm,
    AttnNorm,
    Q,
    K,
    V,
    /// q, k and v in one matrix, in that order.
    Qkv,
    O,
    QNorm,
    KNorm,
    /// Those of one head, where each has its own.
    QNormOf(usize),
    KNormOf(usize),
    /// What attention's output is multiplied by.
    AttnGate,
    /// A logit for each head that joins its softmax.
    Sinks,
    /// Norm of attention's output before it joins the residual stream.
    AttnPostNorm,
    MlpNorm,
    Gate,
    Up,
    /// gate and up in one matrix, in that order.
    GateUp,
    Down,
    MlpPostNorm,
    /// What chooses among experts.
    Router,
    /// Its bias: what is added to the scores of experts for the choice.
    RouterCorrection,
    /// All experts of a layer in one tensor, `[experts, rows, columns]`.
    GateExperts,
    UpExperts,
    /// gate and up of each expert in one matrix, in that order.
    GateUpExperts,
    DownExperts,
    /// Those two in MXFP4 beside its scales (gpt-oss's safetensors).
    GateUpExpertsBlocks,
    DownExpertsBlocks,
    /// Of the expert that every position passes.
    SharedGate,
    SharedUp,
    SharedGateUp,
    SharedDown,
    /// What its output is multiplied by.
    SharedExpertGate,
    /// Projections before and behind experts of another width.
    LatentIn,
    LatentOut,
    /// One expert.
    ExpertGate(usize),
    ExpertUp(usize),
    ExpertDown(usize),
    /// Of a short convolution.
    ConvIn,
    Conv,
    ConvOut,
    /// Of Gated DeltaNet: q, k and v in one matrix, in that order; the gate, and what makes strength and
    /// decay.
    DeltaQkv,
    DeltaZ,
    DeltaBeta,
    DeltaAlpha,
    /// Of Mamba-2: z, x, B, C and dt in one matrix, in that order; three parts of it, for adapters.
    SsmIn,
    SsmZ,
    SsmXbc,
    SsmDt,
    /// Of both: the convolution; the factor of the decay, the bias of the step, what goes around the state,
    /// the norm and the output.
    SsmConv,
    SsmA,
    SsmDtBias,
    SsmD,
    SsmNorm,
    SsmOut,
    /// Of latent attention: to the latents, their norms, and from them.
    QueryA,
    QueryANorm,
    QueryB,
    LatentA,
    LatentANorm,
    /// Keys and values of all heads, head by head.
    LatentB,
    /// The same apart, that of the keys on its side.
    LatentKeys,
    LatentValues,
    /// The parameters of xIELU.
    XieluAlphaP,
    XieluAlphaN,
    XieluBeta,
    XieluEps,
    /// The table of per-layer embeddings.
    PerLayerEmbed,
    /// From the embedding to the inputs of all layers, and the norm behind it.
    PerLayerModel,
    PerLayerModelNorm,
    /// A layer's own.
    PerLayerGate,
    PerLayerProjection,
    PerLayerNorm,
    /// What the output of a layer is multiplied by.
    OutputScale,
    /// What the normed input of a router is multiplied by, and the output of each expert.
    RouterScale,
    ExpertScales,
    /// Norms of a dense feed-forward and of experts beside each other.
    DensePostNorm,
    ExpertsNorm,
    ExpertsPostNorm,
}

/// Part, its spellings in transformers and in GGUF; of several the first that exists counts.
/// Phi-3's GGUF calls the fused gate and up `ffn_up`: the loader tells them apart by the shape.
const TABLE: &[(Part, &[&str], &[&str])] = &[
    (Part::Embed, &["embed_tokens"], &["token_embd"]),
    (Part::Head, &["lm_head"], &["output"]),
    // LFM2 calls its final norm that of the embedding, in both worlds.
    (Part::FinalNorm, &["norm", "final_layernorm", "embedding_norm"], &["output_norm", "token_embd_norm"]),
    (Part::AttnNorm, &["input_layernorm", "operator_norm"], &["attn_norm"]),
    (Part::Q, &["self_attn.q_proj"], &["attn_q"]),
    (Part::K, &["self_attn.k_proj"], &["attn_k"]),
    (Part::V, &["self_attn.v_proj"], &["attn_v"]),
    (Part::Qkv, &["self_attn.qkv_proj"], &["attn_qkv"]),
    (Part::O, &["self_attn.o_proj", "self_attn.dense", "self_attn.out_proj"], &["attn_output"]),
    (Part::QNorm, &["self_attn.q_norm", "self_attn.q_layernorm"], &["attn_q_norm"]),
    (Part::KNorm, &["self_attn.k_norm", "self_attn.k_layernorm"], &["attn_k_norm"]),
    (Part::QNormOf(0), &["self_attn.q_layernorm.norms.{}"], &["attn_q_norm"]),
    (Part::KNormOf(0), &["self_attn.k_layernorm.norms.{}"], &["attn_k_norm"]),
    (Part::AttnGate, &["self_attn.g_proj", "self_attn.gate_proj"], &["attn_gate"]),
    (Part::Sinks, &["self_attn.sinks"], &["attn_sinks"]),
    (Part::MlpNorm, &["pre_feedforward_layernorm", "post_attention_layernorm"], &["ffn_norm"]),
    (Part::AttnPostNorm, &["post_attention_layernorm"], &["post_attention_norm"]),
    (Part::Gate, &["mlp.gate_proj", "feed_forward.w1"], &["ffn_gate"]),
    (Part::Up, &["mlp.up_proj", "mlp.fc1", "mlp.c_fc", "feed_forward.w3"], &["ffn_up"]),
    (Part::GateUp, &["mlp.gate_up_proj"], &["ffn_gate_up"]),
    (Part::Down, &["mlp.down_proj", "mlp.fc2", "mlp.c_proj", "feed_forward.w2"], &["ffn_down"]),
    (Part::MlpPostNorm, &["post_feedforward_layernorm"], &["post_ffw_norm"]),
    (
        Part::Router,
        &[
            "mlp.gate",
            "block_sparse_moe.gate",
            "block_sparse_moe.router.layer",
            "mlp.router",
            "feed_forward.gate",
            "mixer.gate",
        ],
        &["ffn_gate_inp"],
    ),
    // The names end in `_bias`.
    (
        Part::RouterCorrection,
        &[
            "mlp.gate.e_score_correction",
            "mlp.experts.e_score_correction",
            "mlp.moe_statics.e_score_correction",
            "feed_forward.expert",
            "mixer.gate.e_score_correction",
        ],
        &["exp_probs_b"],
    ),
    (Part::GateExperts, &["mlp.experts.gate_proj"], &["ffn_gate_exps"]),
    (Part::UpExperts, &["mlp.experts.up_proj"], &["ffn_up_exps"]),
    (
        Part::GateUpExperts,
        &["mlp.experts.gate_up_proj", "block_sparse_moe.input_linear.weight"],
        &["ffn_gate_up_exps"],
    ),
    (
        Part::DownExperts,
        &["mlp.experts.down_proj", "block_sparse_moe.output_linear.weight"],
        &["ffn_down_exps"],
    ),
    // The names end in `_blocks` and `_scales`; GGUF has blocks with their scales as any other type.
    (Part::GateUpExpertsBlocks, &["mlp.experts.gate_up_proj"], &["ffn_gate_up_exps_blocks"]),
    (Part::DownExpertsBlocks, &["mlp.experts.down_proj"], &["ffn_down_exps_blocks"]),
    (Part::SharedGate, &["mlp.shared_experts.gate_proj", "mlp.shared_expert.gate_proj"], &["ffn_gate_shexp"]),
    (
        Part::SharedUp,
        &["mlp.shared_experts.up_proj", "mlp.shared_expert.up_proj", "mixer.shared_experts.up_proj"],
        &["ffn_up_shexp"],
    ),
    (Part::SharedGateUp, &["shared_mlp.input_linear"], &["ffn_gate_up_shexp"]),
    (
        Part::SharedDown,
        &[
            "mlp.shared_experts.down_proj",
            "mlp.shared_expert.down_proj",
            "mixer.shared_experts.down_proj",
            "shared_mlp.output_linear",
        ],
        &["ffn_down_shexp"],
    ),
    (Part::SharedExpertGate, &["mlp.shared_expert_gate"], &["ffn_gate_inp_shexp"]),
    (Part::LatentIn, &["mixer.fc1_latent_proj"], &["ffn_latent_down"]),
    (Part::LatentOut, &["mixer.fc2_latent_proj"], &["ffn_latent_up"]),
    (
        Part::ExpertGate(0),
        &["mlp.experts.{}.gate_proj", "block_sparse_moe.experts.{}.w1", "feed_forward.experts.{}.w1"],
        &["ffn_gate.{}"],
    ),
    (
        Part::ExpertUp(0),
        &[
            "mlp.experts.{}.up_proj",
            "block_sparse_moe.experts.{}.w3",
            "feed_forward.experts.{}.w3",
            "mixer.experts.{}.up_proj",
        ],
        &["ffn_up.{}"],
    ),
    (
        Part::ExpertDown(0),
        &[
            "mlp.experts.{}.down_proj",
            "block_sparse_moe.experts.{}.w2",
            "feed_forward.experts.{}.w2",
            "mixer.experts.{}.down_proj",
        ],
        &["ffn_down.{}"],
    ),
    (Part::ConvIn, &["conv.in_proj"], &["shortconv.in_proj"]),
    (Part::Conv, &["conv.conv"], &["shortconv.conv"]),
    (Part::ConvOut, &["conv.out_proj"], &["shortconv.out_proj"]),
    (Part::DeltaQkv, &["linear_attn.in_proj_qkv"], &["attn_qkv"]),
    (Part::DeltaZ, &["linear_attn.in_proj_z"], &["attn_gate"]),
    (Part::DeltaBeta, &["linear_attn.in_proj_b"], &["ssm_beta"]),
    (Part::DeltaAlpha, &["linear_attn.in_proj_a"], &["ssm_alpha"]),
    (Part::SsmIn, &["mamba.in_proj", "mixer.in_proj"], &["ssm_in"]),
    // No file has these three apart.
    (Part::SsmZ, &["mamba.in_proj.z"], &["ssm_in.z"]),
    (Part::SsmXbc, &["mamba.in_proj.xbc"], &["ssm_in.xbc"]),
    (Part::SsmDt, &["mamba.in_proj.dt"], &["ssm_in.dt"]),
    (Part::SsmConv, &["linear_attn.conv1d", "mamba.conv1d", "mixer.conv1d"], &["ssm_conv1d"]),
    (Part::SsmA, &["linear_attn.A_log", "mamba.A_log", "mixer.A_log"], &["ssm_a"]),
    // The names end in `_bias`.
    (Part::SsmDtBias, &["linear_attn.dt", "mamba.dt", "mixer.dt"], &["ssm_dt"]),
    (Part::SsmD, &["mamba.D", "mixer.D"], &["ssm_d"]),
    (Part::SsmNorm, &["linear_attn.norm", "mamba.norm", "mixer.norm"], &["ssm_norm"]),
    (Part::SsmOut, &["linear_attn.out_proj", "mamba.out_proj", "mixer.out_proj"], &["ssm_out"]),
    (Part::QueryA, &["self_attn.q_a_proj"], &["attn_q_a"]),
    (Part::QueryANorm, &["self_attn.q_a_layernorm"], &["attn_q_a_norm"]),
    (Part::QueryB, &["self_attn.q_b_proj"], &["attn_q_b"]),
    (Part::LatentA, &["self_attn.kv_a_proj_with_mqa"], &["attn_kv_a_mqa"]),
    (Part::LatentANorm, &["self_attn.kv_a_layernorm"], &["attn_kv_a_norm"]),
    (Part::LatentB, &["self_attn.kv_b_proj"], &["attn_kv_b"]),
    (Part::LatentKeys, &["self_attn.k_b_proj"], &["attn_k_b"]),
    (Part::LatentValues, &["self_attn.v_b_proj"], &["attn_v_b"]),
    // GGUF has them in its metadata.
    (Part::XieluAlphaP, &["mlp.act_fn.alpha_p"], &["xielu.alpha_p"]),
    (Part::XieluAlphaN, &["mlp.act_fn.alpha_n"], &["xielu.alpha_n"]),
    (Part::XieluBeta, &["mlp.act_fn.beta"], &["xielu.beta"]),
    (Part::XieluEps, &["mlp.act_fn.eps"], &["xielu.eps"]),
    (Part::PerLayerEmbed, &["embed_tokens_per_layer"], &["per_layer_token_embd"]),
    (Part::PerLayerModel, &["per_layer_model_projection"], &["per_layer_model_proj"]),
    (Part::PerLayerModelNorm, &["per_layer_projection_norm"], &["per_layer_proj_norm"]),
    (Part::PerLayerGate, &["per_layer_input_gate"], &["inp_gate"]),
    (Part::PerLayerProjection, &["per_layer_projection"], &["proj"]),
    (Part::PerLayerNorm, &["post_per_layer_input_norm"], &["post_norm"]),
    (Part::OutputScale, &["layer_scalar"], &["layer_output_scale"]),
    (Part::RouterScale, &["router.scale"], &["ffn_gate_inp"]),
    (Part::ExpertScales, &["router.per_expert_scale"], &["ffn_down_exps"]),
    (Part::DensePostNorm, &["post_feedforward_layernorm_1"], &["post_ffw_norm_1"]),
    (Part::ExpertsNorm, &["pre_feedforward_layernorm_2"], &["pre_ffw_norm_2"]),
    (Part::ExpertsPostNorm, &["post_feedforward_layernorm_2"], &["post_ffw_norm_2"]),
];

impl Part {
    /// Of one head, where each has its own.
    pub fn of_head(self, head: usize) -> Part {
        match self {
            Part::QNorm => Part::QNormOf(head),
            Part::KNorm => Part::KNormOf(head),
            other => other,
        }
    }

    /// The row of the table that it stands in, and which expert or head it is of.
    fn row(self) -> (Part, Option<usize>) {
        match self {
            Part::ExpertGate(expert) => (Part::ExpertGate(0), Some(expert)),
            Part::ExpertUp(expert) => (Part::ExpertUp(0), Some(expert)),
            Part::ExpertDown(expert) => (Part::ExpertDown(0), Some(expert)),
            Part::QNormOf(head) => (Part::QNormOf(0), Some(head)),
            Part::KNormOf(head) => (Part::KNormOf(0), Some(head)),
            other => (other, None),
        }
    }

    /// This row of the table, of the expert that `name` says, if it is this spelling.
    fn spelled(self, spelling: &str, name: &str) -> Option<Part> {
        let spelling = spelling.strip_suffix(".weight").unwrap_or(spelling);
        let Some((before, after)) = spelling.split_once("{}") else {
            return (spelling == name).then_some(self);
        };
        let expert = number(name.strip_prefix(before)?.strip_suffix(after)?)?;
        Some(match self {
            Part::ExpertGate(_) => Part::ExpertGate(expert),
            Part::ExpertUp(_) => Part::ExpertUp(expert),
            Part::ExpertDown(_) => Part::ExpertDown(expert),
            other => other.of_head(expert),
        })
    }

    /// What stands behind its name in transformers: `.weight` or `.bias`, unless it is stored as a parameter
    /// of its own.
    fn ending(self, kind: &str) -> String {
        use Part::{
            DownExperts, DownExpertsBlocks, GateExperts, GateUpExperts, GateUpExpertsBlocks,
            RouterCorrection, Sinks, SsmA, SsmD, SsmDtBias, UpExperts,
        };
        use Part::{XieluAlphaN, XieluAlphaP, XieluBeta, XieluEps};
        match (self, kind) {
            (Sinks | GateExperts | UpExperts | GateUpExperts | DownExperts, "weight") => String::new(),
            (XieluAlphaP | XieluAlphaN | XieluBeta | XieluEps | Part::OutputScale | SsmA | SsmD, _) => {
                String::new()
            }
            (Part::RouterScale | Part::ExpertScales, _) => String::new(),
            (GateUpExpertsBlocks | DownExpertsBlocks, "weight") => "_blocks".into(),
            (
                RouterCorrection | SsmDtBias | GateExperts | UpExperts | GateUpExperts | DownExperts
                | GateUpExpertsBlocks | DownExpertsBlocks,
                kind,
            ) => format!("_{kind}"),
            _ => format!(".{kind}"),
        }
    }
}

/// The part that a name means behind `layers.N.` (of GGUF: `blk.N.`), or outside of the layers: the first of
/// the table, then of families' `own` spellings, that is `wanted`.
pub fn part_of(
    name: &str,
    gguf: bool,
    own: impl Iterator<Item = &'static [(Part, &'static [&'static str])]>,
    wanted: impl Fn(Part) -> bool,
) -> Option<Part> {
    let usual = TABLE.iter().map(|(part, transformers, gguf_names)| match gguf {
        true => (*part, *gguf_names),
        false => (*part, *transformers),
    });
    let own = own.filter(|_| !gguf).flatten().copied();
    let mut rows = usual.chain(own).filter(|(part, _)| wanted(*part));
    rows.find_map(|(part, names)| names.iter().find_map(|spelling| part.spelled(spelling, name)))
}

/// What transformers calls the module of a part behind `layers.N.`, or outside of the layers: a family's
/// `own` name, else the usual one.
pub fn module_name(part: Part, own: &[(Part, &[&str])]) -> Option<String> {
    let (row, expert) = part.row();
    let usual = TABLE.iter().find(|(other, ..)| *other == row).and_then(|(_, names, _)| names.first());
    let own = own.iter().find(|(other, _)| *other == row).and_then(|(_, names)| names.first());
    let name = own.or(usual)?;
    let name = name.strip_suffix(".weight").unwrap_or(name);
    Some(expert.map_or_else(|| name.to_string(), |expert| name.replace("{}", &expert.to_string())))
}

/// A number without sign and leading zeros, as names of tensors have them: each has one spelling.
pub fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}

/// Where the decoder stands in a checkpoint of transformers, and its head: alone, headless, or inside a model
/// of pictures or sound.
const PLACES: &[(&str, &str)] = &[
    ("model.", "lm_head"),
    ("", "lm_head"),
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("model.text_model.", "lm_head"),
    ("language_model.", "lm_head"),
    // Nemotron-H.
    ("backbone.", "lm_head"),
];

/// How one checkpoint spells the parts.
pub enum Names {
    Gguf {
        /// Norms after attention and MLP too; without them some architectures (seed_oss) call the norm before
        /// the MLP `post_attention_norm`.
        post_norms: bool,
    },
    Transformers {
        prefix: &'static str,
        head: &'static str,
        /// Norms after attention and MLP too: `post_attention_layernorm` is then the norm after attention,
        /// else that before the MLP.
        post_norms: bool,
        /// The family's own spellings of some parts, instead of those of the table.
        own: &'static [(Part, &'static [&'static str])],
    },
}

impl Names {
    pub fn of(weights: &Weights, post_norms: bool, own: &'static [(Part, &'static [&'static str])]) -> Self {
        if weights.contains("token_embd.weight") {
            return Names::Gguf { post_norms };
        }
        // A tied file may store its embedding as the head alone.
        let probes = ["embed_tokens.weight", "embeddings.weight", "layers.0.input_layernorm.weight"];
        let has = |prefix: &str| probes.iter().any(|probe| weights.contains(&format!("{prefix}{probe}")));
        let (prefix, head) = PLACES.iter().find(|(prefix, _)| has(prefix)).copied().unwrap_or(PLACES[0]);
        Names::Transformers { prefix, head, post_norms, own }
    }

    /// Whether these are those of GGUF.
    pub fn is_gguf(&self) -> bool {
        matches!(self, Names::Gguf { .. })
    }

    /// Whether this is a base model of transformers, saved without the class that adds a head.
    pub fn is_headless(&self) -> bool {
        matches!(self, Names::Transformers { prefix: "", .. })
    }

    /// The checkpoint's name of a part's tensor: the spelling that exists; else, for the error, the one that
    /// its weight has, or the usual one.
    pub fn name(&self, weights: &Weights, part: Part, layer: Option<usize>, kind: &str) -> String {
        let spellings = self.spellings(part, layer, kind);
        let stored = spellings.iter().position(|name| weights.contains(name));
        let beside = || self.spellings(part, layer, "weight").iter().position(|name| weights.contains(name));
        // A name that stands for a weight alone has nothing beside it.
        let found = stored.or_else(beside).and_then(|at| spellings.get(at));
        found.or(spellings.first()).cloned().unwrap_or_default()
    }

    /// All names that a part's weight may have.
    pub fn all(&self, part: Part, layer: Option<usize>) -> Vec<String> {
        self.spellings(part, layer, "weight")
    }

    fn spellings(&self, part: Part, layer: Option<usize>, kind: &str) -> Vec<String> {
        let (row, expert) = part.row();
        let (_, transformers, gguf) =
            TABLE.iter().find(|(p, ..)| *p == row).expect("every part stands in the table (tested)");
        let names = match self {
            Names::Transformers { own, .. } => {
                own.iter().find(|(part, _)| *part == row).map(|(_, names)| *names)
            }
            Names::Gguf { .. } => None,
        };
        let names = match names {
            Some(own) => self.own_spellings(own, part, layer, kind),
            None => self.row_spellings(part, (transformers, gguf), layer, kind),
        };
        match expert {
            Some(expert) => names.into_iter().map(|name| name.replace("{}", &expert.to_string())).collect(),
            None => names,
        }
    }

    /// Those of a family's own names.
    fn own_spellings(&self, names: &[&str], part: Part, layer: Option<usize>, kind: &str) -> Vec<String> {
        let Names::Transformers { prefix, .. } = self else { return Vec::new() };
        let ending = part.ending(kind);
        let spelled = |name: &&str| match layer {
            Some(i) => format!("{prefix}layers.{i}.{name}{ending}"),
            None => format!("{prefix}{name}{ending}"),
        };
        names.iter().map(spelled).collect()
    }

    fn row_spellings(
        &self,
        part: Part,
        (transformers, gguf): (&[&str], &[&str]),
        layer: Option<usize>,
        kind: &str,
    ) -> Vec<String> {
        match (self, layer) {
            (Names::Gguf { post_norms }, Some(i)) => {
                let names = match (part, post_norms) {
                    (Part::MlpNorm, false) => &["ffn_norm", "post_attention_norm"][..],
                    _ => gguf,
                };
                // Two parameters have no ending there either.
                let ending = match part {
                    Part::SsmA | Part::SsmD => String::new(),
                    _ => format!(".{kind}"),
                };
                let mut names: Vec<_> = names.iter().map(|name| format!("blk.{i}.{name}{ending}")).collect();
                if part == Part::MlpNorm && kind == "weight" {
                    // As Falcon-H1's files have it.
                    names.push(format!("blk.{i}.ffn_norm"));
                }
                names
            }
            (Names::Gguf { .. }, None) => gguf.iter().map(|name| format!("{name}.{kind}")).collect(),
            (Names::Transformers { head, .. }, None) if part == Part::Head => {
                let mut names = vec![format!("{head}.{kind}"), format!("lm_head.{kind}")];
                names.dedup();
                names
            }
            (Names::Transformers { .. }, None) => self.own_spellings(transformers, part, None, kind),
            (Names::Transformers { post_norms, .. }, Some(i)) => {
                let names = match (part, post_norms) {
                    (Part::MlpNorm, true) => &["pre_feedforward_layernorm"][..],
                    (Part::MlpNorm, false) => &["post_attention_layernorm", "ffn_norm"][..],
                    _ => transformers,
                };
                self.own_spellings(names, part, Some(i), kind)
            }
        }
    }
}

/// Ends of the names of tensors that change nothing in a decoder: what can be computed again, and the scales
/// of a quantized cache and of quantized activations, neither of which is quantized by a file's scales here.
const HARMLESS: &[&str] = &[
    // Of an embedding model: read where vectors are made, and refused there.
    "dense_2.weight",
    "dense_3.weight",
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".attn_rot_embd.weight",
    ".k_scale",
    ".v_scale",
    ".k_cache_scale",
    ".v_cache_scale",
    ".input_scale",
    ".input_global_scale",
    ".activation_scale",
];

/// Heads that make no tokens, by the start of their tensors' names.
const OTHER_HEADS: &[&str] = &["score.", "v_head.", "classifier.", "cls."];

/// Modules around the language model, by the start of their tensors' names (after `model.`): what they are.
const AROUND: &[(&str, &str)] = &[
    ("visual.", "images"),
    ("vision_tower.", "images"),
    ("vision_model.", "images"),
    ("vision_adapter.", "images"),
    ("vision_projection.", "images"),
    ("embed_vision.", "images"),
    ("multi_modal_projector.", "images"),
    ("connector.", "images"),
    ("image_newline", "images"),
    ("audio_tower.", "audio"),
    ("embed_audio.", "audio"),
];

/// A draft head (multi-token prediction), which no answer needs.
const DRAFT_HEAD: &str = "mtp.";

/// What a module beside the language model is for, if this is the name of one or of something in one.
pub fn beside(name: &str) -> Option<&'static str> {
    let within = |start: &str| {
        name.match_indices(start.trim_end_matches('.')).any(|(at, found)| {
            let ends =
                name.get(at + found.len()..).is_none_or(|rest| rest.is_empty() || rest.starts_with('.'));
            ends && (at == 0 || name.get(..at).is_some_and(|before| before.ends_with('.')))
        })
    };
    let around = AROUND.iter().find(|(start, _)| within(start)).map(|(_, what)| *what);
    around.or_else(|| within(DRAFT_HEAD).then_some("a draft head"))
}

/// Where in a checkpoint of transformers the decoder may stand: what comes before `layers.N.`.
pub fn prefixes() -> impl Iterator<Item = &'static str> {
    PLACES.iter().map(|(prefix, _)| *prefix)
}

/// Sees to it that nothing in a file was meant for another model, once a decoder has taken its tensors.
/// `wrapper`: the checkpoint is that of a model of pictures or sound, whose other parts are left alone.
/// `drafts`: the layers of a draft head, which GGUF has behind the others.
///
/// Returns what was left alone, for people: "images (12 tensors)".
///
/// # Errors
/// `UnsupportedModel` naming the first tensor that nothing uses: transformers would pass over it with a
/// warning, and give numbers that its maker never saw.
pub fn left_alone(weights: &Weights, wrapper: bool, drafts: Range<usize>) -> Result<Vec<String>> {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    let mut foreign = Vec::new();
    let harmless = |name: &str| HARMLESS.iter().any(|end| name.ends_with(end)) || weights.adds_nothing(name);
    for name in weights.unread().filter(|name| !harmless(name)) {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let around = AROUND.iter().find(|(start, _)| wrapper && inner.starts_with(start));
        match around {
            Some((_, what)) => *left.entry(what).or_default() += 1,
            None if inner.starts_with(DRAFT_HEAD) || is_block(name, &drafts) => {
                *left.entry("a draft head").or_default() += 1
            }
            None => foreign.push(name),
        }
    }
    if let Some(first) = foreign.first() {
        let others = match foreign.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        if OTHER_HEADS.iter().any(|head| first.starts_with(head)) {
            return Err(Error::unsupported(format!(
                "{}: {}{others} is the head of a classifier, reranker or reward model, which is not supported",
                weights.file_of(first).display(),
                quoted(first)
            )));
        }
        return Err(Error::unsupported(format!(
            "{}: nothing uses the tensor {}{others}: the configuration describes a model without it, and reading the file \
             as that one would give other numbers than its maker's; it may be quantized in a way that is not read, \
             or its config.json belongs to another model",
            weights.file_of(first).display(),
            quoted(first)
        )));
    }
    Ok(left.into_iter().map(|(what, count)| format!("{what} ({count} tensors)")).collect())
}

/// Whether a tensor of GGUF is of one of these layers.
fn is_block(name: &str, layers: &Range<usize>) -> bool {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(number, _)| number);
    number.and_then(|number| number.parse().ok()).is_some_and(|number| layers.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_spelling_in_both_worlds() {
        use Part::*;
        let parts = [
            Embed,
            Head,
            FinalNorm,
            AttnNorm,
            Q,
            K,
            V,
            Qkv,
            O,
            QNorm,
            KNorm,
            QNormOf(7),
            KNormOf(7),
            AttnPostNorm,
            MlpNorm,
            Gate,
            Up,
            GateUp,
            Down,
            MlpPostNorm,
            Router,
            GateExperts,
            UpExperts,
            GateUpExperts,
            DownExperts,
            RouterCorrection,
            GateUpExpertsBlocks,
            DownExpertsBlocks,
            SharedGate,
            SharedUp,
            SharedGateUp,
            SharedDown,
            SharedExpertGate,
            LatentIn,
            LatentOut,
            AttnGate,
            Sinks,
            ExpertGate(7),
            ExpertUp(7),
            ExpertDown(7),
            ConvIn,
            Conv,
            ConvOut,
            DeltaQkv,
            DeltaZ,
            DeltaBeta,
            DeltaAlpha,
            SsmIn,
            SsmZ,
            SsmXbc,
            SsmDt,
            SsmConv,
            SsmA,
            SsmDtBias,
            SsmD,
            SsmNorm,
            SsmOut,
            QueryA,
            QueryANorm,
            QueryB,
            LatentA,
            LatentANorm,
            LatentB,
            LatentKeys,
            LatentValues,
            XieluAlphaP,
            XieluAlphaN,
            XieluBeta,
            XieluEps,
            PerLayerEmbed,
            PerLayerModel,
            PerLayerModelNorm,
            PerLayerGate,
            PerLayerProjection,
            PerLayerNorm,
            OutputScale,
            RouterScale,
            ExpertScales,
            DensePostNorm,
            ExpertsNorm,
            ExpertsPostNorm,
        ];
        for part in parts {
            for names in [
                Names::Gguf { post_norms: false },
                Names::Transformers { prefix: "model.", head: "lm_head", post_norms: false, own: &[] },
            ] {
                assert!(!names.spellings(part, Some(3), "weight").is_empty(), "{part:?}");
            }
        }
        let mixtral = Names::Transformers { prefix: "model.", head: "lm_head", post_norms: false, own: &[] };
        assert_eq!(
            mixtral.spellings(ExpertDown(7), Some(2), "weight")[1],
            "model.layers.2.block_sparse_moe.experts.7.w2.weight"
        );
        assert_eq!(
            mixtral.spellings(GateUpExperts, Some(2), "weight"),
            [
                "model.layers.2.mlp.experts.gate_up_proj",
                "model.layers.2.block_sparse_moe.input_linear.weight"
            ]
        );
        for (part, kind, wanted) in [
            (GateUpExperts, "bias", "mlp.experts.gate_up_proj_bias"),
            (GateUpExpertsBlocks, "weight", "mlp.experts.gate_up_proj_blocks"),
            (DownExpertsBlocks, "scales", "mlp.experts.down_proj_scales"),
            (RouterCorrection, "bias", "mlp.gate.e_score_correction_bias"),
            (Router, "bias", "mlp.gate.bias"),
            (Sinks, "weight", "self_attn.sinks"),
            (SsmA, "weight", "linear_attn.A_log"),
            (SsmDtBias, "bias", "linear_attn.dt_bias"),
        ] {
            let wanted = format!("model.layers.2.{wanted}");
            assert_eq!(mixtral.spellings(part, Some(2), kind)[0], wanted);
        }
        let (prefix, head) = PLACES[3];
        let gemma = Names::Transformers { prefix, head, post_norms: true, own: &[] };
        assert_eq!(gemma.spellings(Head, None, "weight")[0], "language_model.lm_head.weight");
        assert_eq!(
            gemma.spellings(AttnPostNorm, Some(0), "weight"),
            ["language_model.model.layers.0.post_attention_layernorm.weight"]
        );
        let (prefix, head) = PLACES[5];
        let headless = Names::Transformers { prefix, head, post_norms: true, own: &[] };
        assert_eq!(headless.spellings(Head, None, "weight")[0], "lm_head.weight");
    }
}
