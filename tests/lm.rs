//! What a program sees of the crate: prompts of all kinds, options with defaults, answers whole, in chunks
//! and as a stream, on a model of 64 tokens.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use serde_json::json;
use tallow::{
    Chat, Chunk, Constraint, ErrorKind, FinishReason, GenerateOptions, Lm, LmOptions, LoadOptions, Model,
};

const BASE: &str = "tests/golden/families/llama-gqa-tied/model.gguf";
const TEMPLATE: &str =
    "{% for message in messages %}{{ message.role[0] }} {{ message.content }} {% endfor %}";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// One engine for all tests, which may run at the same time.
static LM: LazyLock<Lm> = LazyLock::new(|| {
    let options = LoadOptions { chat_template: Some(TEMPLATE.into()), ..LoadOptions::default() };
    let model: Arc<Model> = Model::load(path(BASE), &options).unwrap();
    Lm::start(model, &LmOptions { kv_memory: Some(4 << 20), ..LmOptions::default() }).unwrap()
});

fn short(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ..GenerateOptions::default() }
}

fn ids(chunks: &[Chunk]) -> Vec<u32> {
    chunks.iter().flat_map(|chunk| chunk.tokens.clone()).collect()
}

fn chat() -> Chat {
    Chat::new().system("ab").user("cd").assistant("ef").user("gh")
}

#[test]
fn a_prompt_is_a_text_ids_or_a_conversation() {
    let (lm, chat) = (&*LM, chat());
    let rendered = lm.model().render(&chat).unwrap();
    assert_eq!(rendered.text(), "s ab u cd a ef u gh ");
    let ids = lm.model().prompt_ids(&(&rendered).into()).unwrap();
    let of_chat = lm.complete(&chat, &short(8)).unwrap();
    assert_eq!(of_chat.usage.prompt_tokens, ids.len());
    let all =
        [lm.complete(&rendered, &short(8)), lm.complete(&ids, &short(8)), lm.complete(&ids[..], &short(8))];
    for other in all {
        assert_eq!(other.unwrap().tokens, of_chat.tokens);
    }
    let text = String::from(rendered.text());
    assert_eq!(lm.complete(&text, &short(8)).unwrap().tokens, of_chat.tokens);
    let scored = lm.score(&chat, &["ab".into()], None).unwrap().0;
    assert_eq!(scored, lm.score(&rendered, &["ab".into()], None).unwrap().0);
}

#[test]
fn chunks_are_the_answer_piece_by_piece() {
    let options = GenerateOptions { logprobs: Some(2), ..short(12) };
    let whole = LM.complete("abc", &options).unwrap();
    assert_eq!((whole.reason, whole.tokens.len()), (FinishReason::Length, 12));
    assert_eq!(whole.logprobs.len(), 12);
    assert!(whole.timings.total() >= whole.timings.first_token);
    let chunks: Vec<_> = LM.generate("abc", &options).unwrap().into_iter().map(Result::unwrap).collect();
    assert!(chunks.len() > 1 && chunks.last().unwrap().finish.is_some());
    assert_eq!(chunks.iter().map(|chunk| &*chunk.text).collect::<String>(), whole.text);
    assert_eq!(ids(&chunks), whole.tokens);
}

#[test]
fn a_constraint_is_one_call() {
    type Holds = fn(&str) -> bool;
    let rows: [(Constraint, Holds); 4] = [
        (Constraint::choices(["ab", "ba"]), |text| ["ab", "ba"].contains(&text)),
        (Constraint::regex("[0-9]{3}"), |text| text.len() == 3 && text.parse::<u32>().is_ok()),
        (Constraint::lark(r#"start: "ab" /[x-z]{2}/ "ab""#), |text| {
            text.starts_with("ab") && text.len() == 6
        }),
        (Constraint::json_schema(json!({"enum": [3, 4]})), |text| ["3", "4"].contains(&text)),
    ];
    for (constraint, holds) in rows {
        let name = constraint.name();
        let answer =
            LM.complete("abc", &GenerateOptions { constraint: Some(constraint), ..short(40) }).unwrap();
        assert!(holds(&answer.text), "{name}: {:?}", answer.text);
        assert_eq!(answer.reason, FinishReason::Stop, "{name}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_kind() {
    let complete = |prompt: &str, options: &GenerateOptions| LM.complete(prompt, options).unwrap_err();
    let wrong = GenerateOptions { constraint: Some(Constraint::regex("(")), ..short(4) };
    assert_eq!(complete("abc", &wrong).kind(), ErrorKind::Constraint);
    assert_eq!(complete(&"ab".repeat(5000), &short(4)).kind(), ErrorKind::ContextLength);
    let of_vectors = LM.logits(vec![6, 7], None).unwrap();
    assert_eq!(of_vectors.completion().unwrap_err().kind(), ErrorKind::Internal);
    let mut read = LM.generate("abc", &short(2)).unwrap();
    while read.wait().is_some() {}
    assert_eq!(read.completion().unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[test]
fn options_take_the_models_own_sampler_unless_told() {
    let own = LM.complete("abc", &short(6)).unwrap();
    let greedy = GenerateOptions { sampler: Some(tallow::Sampler::greedy()), ..short(6) };
    assert_eq!(LM.complete("abc", &greedy).unwrap().tokens, own.tokens);
}

#[cfg(feature = "stream")]
mod stream {
    use futures_lite::{StreamExt, future};

    use super::*;

    /// What executors of many threads ask of a task.
    fn movable<T: Send>(task: T) -> T {
        task
    }

    #[test]
    fn streams_of_one_thread_are_one_batch_and_say_what_the_others_say() {
        let texts = ["a", "b", "c"];
        let ask = |text: &str| LM.stream(text.to_string(), short(12)).unwrap();
        let asked = texts.map(ask);
        for (text, stream) in texts.iter().zip(asked) {
            let whole = LM.complete(*text, &short(12)).unwrap();
            let chunks = future::block_on(stream.map(Result::unwrap).collect::<Vec<_>>());
            assert_eq!(ids(&chunks), whole.tokens);
            assert!(chunks.last().unwrap().finish.is_some());
        }
        let answer = future::block_on(movable(LM.stream(chat(), short(8)).unwrap().completion())).unwrap();
        assert_eq!(answer.tokens, LM.complete(&chat(), &short(8)).unwrap().tokens);
    }

    #[test]
    fn what_is_wrong_is_the_only_item_and_a_dropped_stream_is_cancelled() {
        let wrong = GenerateOptions { constraint: Some(Constraint::regex("(")), ..short(4) };
        let stream = LM.stream(String::from("abc"), wrong).unwrap();
        let items = future::block_on(stream.collect::<Vec<_>>());
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].as_ref().unwrap_err().kind(), ErrorKind::Constraint);

        let model = LM.model().clone();
        let lm = Lm::start(model, &LmOptions { kv_memory: Some(1 << 20), ..LmOptions::default() }).unwrap();
        // Long, and tried again: one that ended by itself before it was dropped is not cancelled.
        let long = || GenerateOptions {
            constraint: Some(Constraint::regex("[a-z]{100,}")),
            ..GenerateOptions::default()
        };
        for tried in 1..=20 {
            let mut stream = lm.stream(String::from("abc"), long()).unwrap();
            assert!(future::block_on(stream.next()).unwrap().unwrap().finish.is_none());
            drop(stream);
            while lm.stats().ended() < tried {
                std::thread::yield_now();
            }
            if lm.stats().cancelled == 1 {
                break;
            }
        }
        assert_eq!((lm.stats().cancelled, lm.stats().failed), (1, 0));
    }
}
