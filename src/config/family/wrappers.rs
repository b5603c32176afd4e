//! Models of pictures or sound around a language model.

/// A model of pictures or sound around a language model, which alone is loaded.
pub(in crate::config) struct Wrapper {
    pub model_type: &'static str,
    /// The family of `text_config`.
    pub text: Text,
    /// `tie_word_embeddings` of the wrapper where absent; the wrapper's own counts, not its `text_config`'s.
    pub tied: bool,
    /// `tie_word_embeddings` of `text_config` counts too, if it is true (files of before transformers 5).
    pub inner_tied: bool,
    /// Published without `text_config`: the keys of the text model stand beside the wrapper's.
    pub flat: bool,
}

pub(in crate::config) enum Text {
    /// Always this one, whatever `text_config` calls itself.
    Fixed(&'static str),
    /// As its `model_type` says, else this one.
    Own(&'static str),
}

pub(super) const WRAPPER: Wrapper =
    Wrapper { model_type: "llava", text: Text::Own("llama"), tied: false, inner_tied: true, flat: false };

pub(super) const WRAPPERS: &[Wrapper] = &[
    WRAPPER,
    Wrapper {
        model_type: "muse_glimmer",
        text: Text::Fixed("muse_glimmer_text"),
        inner_tied: false,
        ..WRAPPER
    },
    Wrapper { model_type: "llava_next", inner_tied: false, ..WRAPPER },
    Wrapper { model_type: "smolvlm", inner_tied: false, ..WRAPPER },
    Wrapper { model_type: "idefics3", inner_tied: false, ..WRAPPER },
    Wrapper { model_type: "mistral3", text: Text::Own("mistral"), tied: true, inner_tied: false, ..WRAPPER },
    Wrapper {
        model_type: "gemma3",
        text: Text::Fixed("gemma3_text"),
        tied: true,
        inner_tied: false,
        ..WRAPPER
    },
    Wrapper {
        model_type: "gemma4",
        text: Text::Fixed("gemma4_text"),
        tied: true,
        inner_tied: false,
        ..WRAPPER
    },
    Wrapper {
        model_type: "gemma4_unified",
        text: Text::Fixed("gemma4_unified_text"),
        tied: true,
        inner_tied: false,
        ..WRAPPER
    },
    Wrapper { model_type: "qwen2_vl", text: Text::Fixed("qwen2_vl_text"), flat: true, ..WRAPPER },
    Wrapper { model_type: "qwen2_5_vl", text: Text::Fixed("qwen2_5_vl_text"), flat: true, ..WRAPPER },
    Wrapper { model_type: "qwen3_5", text: Text::Fixed("qwen3_5_text"), inner_tied: false, ..WRAPPER },
    Wrapper {
        model_type: "qwen3_5_moe",
        text: Text::Fixed("qwen3_5_moe_text"),
        inner_tied: false,
        ..WRAPPER
    },
    Wrapper { model_type: "qwen3_vl", text: Text::Fixed("qwen3_vl_text"), inner_tied: false, ..WRAPPER },
];

impl Wrapper {
    pub fn of_model_type(name: &str) -> Option<&'static Wrapper> {
        WRAPPERS.iter().find(|wrapper| wrapper.model_type == name)
    }
}
