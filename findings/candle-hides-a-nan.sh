#!/usr/bin/env bash
# A kernel or a weight that went wrong gives NaN, and NaN is what one looks for in the logits.
#
# Usual guess: NaN stays NaN through relu, and max and argmax find it, as in PyTorch and numpy: an answer with a NaN in it is seen.
# Seen (candle-core 0.11.1, CPU): relu makes it 0. max and argmax pass it over, so that greedy decoding goes on with the best of the
#   other numbers. The sum alone tells: it is NaN.
#
# Output seen:
#   of [1, NaN, 3]: relu [1.0, 0.0, 3.0], max 3, argmax 2, sum NaN
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "hidden-nan"
version = "0.0.0"
edition = "2024"

[profile.dev]
debug = false

[dependencies]
candle-core = { version = "=0.11.1", default-features = false }
TOML
cat > "$work/src/main.rs" <<'RUST'
use candle_core::{Device, Result, Tensor};

fn main() -> Result<()> {
    let x = Tensor::new(&[1f32, f32::NAN, 3.0], &Device::Cpu)?;
    let relu = x.relu()?.to_vec1::<f32>()?;
    let max = x.max(0)?.to_scalar::<f32>()?;
    let argmax = x.argmax(0)?.to_scalar::<u32>()?;
    let sum = x.sum_all()?.to_scalar::<f32>()?;
    println!("of [1, NaN, 3]: relu {relu:?}, max {max}, argmax {argmax}, sum {sum}");
    let hidden = relu == [1.0, 0.0, 3.0] && max == 3.0 && argmax == 2;
    std::process::exit(i32::from(!(hidden && sum.is_nan())));
}
RUST
cargo run --quiet --manifest-path "$work/Cargo.toml" --target-dir "$work/target"
