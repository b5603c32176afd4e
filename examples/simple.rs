//! A text goes on: `cargo run --release --example simple -- model.gguf "The capital of Peru is"`.

use tallow::{GenerateOptions, Lm};

fn main() -> tallow::Result<()> {
    let mut words = std::env::args().skip(1);
    let model = words.next().unwrap_or_else(|| "HuggingFaceTB/SmolLM2-135M-Instruct".into());
    let prompt = words.next().unwrap_or_else(|| "The capital of Peru is".into());

    let lm = Lm::load(model)?;
    let options =
        GenerateOptions { max_tokens: Some(40), stop: vec!["\n".into()], ..GenerateOptions::default() };
    let answer = lm.complete(&prompt, &options)?;
    println!("{prompt}{}", answer.text);
    println!(
        "{} tokens, {:?}, the first after {:.0?} of {:.0?}",
        answer.usage.completion_tokens,
        answer.reason,
        answer.timings.first_token,
        answer.timings.total()
    );
    Ok(())
}
