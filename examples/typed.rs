//! Answers that parse, whatever the model: `cargo run --release --example typed`.

use serde::Deserialize;
use serde_json::json;
use tallow::{Chat, Constraint, GenerateOptions, Lm};

/// Unless another file, folder or name is given.
const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

#[derive(Debug, Deserialize)]
struct Person {
    name: String,
    age: u8,
    city: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lm = Lm::load(std::env::args().nth(1).as_deref().unwrap_or(MODEL))?;
    let held_to = |constraint| GenerateOptions {
        max_tokens: Some(80),
        constraint: Some(constraint),
        ..GenerateOptions::default()
    };

    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "city": {"type": "string", "maxLength": 30},
        },
        "required": ["name", "age", "city"],
        "additionalProperties": false,
    });
    let chat = Chat::new()
        .user("Extract the name, age and city as JSON. Maria Lopez is 34 years old and lives in Madrid.");
    let answer = lm.complete(&chat, &held_to(Constraint::json_schema(schema)))?;
    let Person { name, age, city } = serde_json::from_str(&answer.text)?;
    println!("{name}, {age}, {city}");

    let language = Constraint::choices([" English", " French", " German"]);
    println!(
        "Guten Tag:{}",
        lm.complete("The language of the text 'Guten Tag' is", &held_to(language))?.text
    );

    let date = Constraint::lark(
        r#"start: YEAR "-" MONTH
        YEAR: /(19|20)[0-9]{2}/
        MONTH: /0[1-9]|1[0-2]/"#,
    );
    let moon = Chat::new().user("When did a human first walk on the Moon? Write year and month.");
    println!("on the Moon: {}", lm.complete(&moon, &held_to(date))?.text);
    Ok(())
}
