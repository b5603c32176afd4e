//! A dspy-rs program on a model in its own process: no server, no key, and no answer that its parser panics on.

mod local;

use std::time::Instant;

use anyhow::Result;
use dspy_rs::{Example, LM, Predict, Predictor, Signature, configure, example};
use local::Local;
use serde_json::Value;

#[Signature]
struct Booking {
    /// Read a hotel booking.
    #[input]
    pub message: String,
    #[output]
    pub guest: String,
    #[output]
    pub city: String,
    #[output]
    pub nights: u8,
}

/// For sense, a model of 135 million parameters should have seen two answers.
fn seen() -> Vec<Example> {
    [
        ("Hello, this is Anna Berg. I need a room in Oslo for two nights.", "Anna Berg", "Oslo", 2),
        ("A suite in Rome for 5 nights, please. Yours, Paul Moreau", "Paul Moreau", "Rome", 5),
    ]
    .map(|(message, guest, city, nights)| {
        example! {
            "message": "input" => message,
            "guest": "output" => guest,
            "city": "output" => city,
            "nights": "output" => nights
        }
    })
    .into()
}

#[tokio::main]
async fn main() -> Result<()> {
    let lm = tallow::Lm::load(
        std::env::args().nth(1).unwrap_or_else(|| "HuggingFaceTB/SmolLM2-135M-Instruct".into()),
    )?;
    // dspy-rs wants a client; nobody calls this one. What it says of sampling is what the adapter reads.
    let unused = LM::builder().base_url("http://127.0.0.1:1/v1".into()).temperature(0.0).max_tokens(120);
    configure(unused.build().await?, Local::new(lm.clone()));

    let mut read = Predict::new(Booking::new());
    read.signature.set_demos(seen())?;
    let ask = |message: &str| read.forward(example! { "message": "input" => message });
    let begin = Instant::now();
    // Two calls in one task: one batch, whose prompts have all but the last message in common.
    let (first, second) = tokio::try_join!(
        ask("Could I have a double room in Vienna for 10 nights? My name is Eva Novak."),
        ask("Seven nights in Berlin, single room. Thanks, Tom Becker"),
    )?;
    for booking in [&first, &second] {
        let field = |name: &str| match booking.get(name, None) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        println!("{}, {}, {} nights", field("guest"), field("city"), field("nights"));
    }
    let stats = lm.stats();
    println!(
        "{:.1?}; {} of {} prompt tokens were found in the cache; sequences in a step: {:.1}",
        begin.elapsed(),
        stats.cached_tokens,
        stats.prompt_tokens,
        stats.mean_batch()
    );
    Ok(())
}
