//! Answers as streams, two in one task: `cargo run --release --features stream --example stream`.
//!
//! The engine's thread wakes the task, so any executor will do, and both answers are one batch.

use futures_lite::{StreamExt, future};
use tallow::{Chat, GenerateOptions, Lm, Result};

/// Unless another file, folder or name is given.
const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

async fn ask(lm: &Lm, name: &str, question: &str) -> Result<()> {
    let options = GenerateOptions { max_tokens: Some(40), ..GenerateOptions::default() };
    let mut chunks = lm.stream(Chat::new().user(question), options)?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        println!("{name}: {:?}", chunk.text);
        if let Some(finish) = chunk.finish {
            println!("{name} ended: {:?}, {} tokens", finish.reason, finish.usage.completion_tokens);
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let lm = Lm::load(std::env::args().nth(1).as_deref().unwrap_or(MODEL))?;
    let both =
        future::try_zip(ask(&lm, "sky", "Why is the sky blue?"), ask(&lm, "sea", "Why is the sea salty?"));
    future::block_on(both)?;
    println!("sequences in a step: {:.1}", lm.stats().mean_batch());
    Ok(())
}
