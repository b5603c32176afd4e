//! A conversation in the terminal: `cargo run --release --example chat -- model.gguf`. An empty line ends it.

use std::io::{self, Write};

use tallow::{Chat, GenerateOptions, Lm};

/// Unless another file, folder or name is given.
const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lm = Lm::load(std::env::args().nth(1).as_deref().unwrap_or(MODEL))?;
    let options = GenerateOptions { max_tokens: Some(200), ..GenerateOptions::default() };
    let mut chat = Chat::new().system("You are a helpful assistant who is brief.");
    loop {
        print!("> ");
        io::stdout().flush()?;
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        if line.trim().is_empty() {
            return Ok(());
        }
        chat = chat.user(line.trim());
        // What was said before is in the cache: only the new turn is computed.
        let mut answer = String::new();
        for chunk in lm.generate(&chat, &options)? {
            let text = chunk?.text;
            print!("{text}");
            io::stdout().flush()?;
            answer += &text;
        }
        println!();
        chat = chat.assistant(answer);
    }
}
