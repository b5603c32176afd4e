//! One model and adapters of it, in one batch:
//! `cargo run --release --example adapters -- MODEL ADAPTER... PROMPT`.
//!
//! An adapter is a folder of peft or mlx-lm, or a GGUF file.

use std::path::Path;

use tallow::{GenerateOptions, Lm, Result};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, folders @ .., prompt] = &words[..] else {
        eprintln!("usage: adapters MODEL ADAPTER... PROMPT");
        std::process::exit(2);
    };
    let lm = Lm::load(model)?;
    let mut asked = vec![("the model as it is", GenerateOptions::default())];
    for folder in folders {
        let adapter = lm.load_adapter(Path::new(folder), None, 1.0)?;
        asked.push((folder, GenerateOptions { adapter: Some(adapter), ..GenerateOptions::default() }));
    }
    // All are begun before the first is read, so they are computed together, over the same packed weights.
    let mut answers = Vec::new();
    for (name, options) in asked {
        let options = GenerateOptions { max_tokens: Some(20), ..options };
        answers.push((name, lm.generate(prompt, &options)?));
    }
    for (name, answer) in answers {
        println!("{name}: {:?}", answer.completion()?.text);
    }
    Ok(())
}
