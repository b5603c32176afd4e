#!/usr/bin/env bash
# Models are run in bf16 or f16 on a CPU too. candle has sums, means and softmax for these types.
#
# Usual guess: sums are kept in f32 and rounded once at the end, as PyTorch's are, so that a row's softmax adds up to about 1.
# Seen (candle-core and candle-nn 0.11.1, CPU): they are kept in the type itself. A sum of ones stops at 256 in bf16 and at 2048 in
#   f16, where one more no longer counts. The softmax of 4096 equal scores adds up to 16 in bf16, to 2 in f16: an
#   attention that looks at all of a long prompt alike comes out too large by that factor. A product of matrices of the same
#   numbers is right, and so is all of it in f32.
#
# Output seen:
#   BF16  sum of 4096 ones: 256   softmax of 4096 adds up to: 16  by matmul: 4096
#   F16   sum of 4096 ones: 2048  softmax of 4096 adds up to: 2   by matmul: 4096
#   F32   sum of 4096 ones: 4096  softmax of 4096 adds up to: 1   by matmul: 4096
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src"
cat > "$work/Cargo.toml" <<'TOML'
[package]
name = "half-sums"
version = "0.0.0"
edition = "2024"

[profile.dev]
debug = false

[dependencies]
candle-core = { version = "=0.11.1", default-features = false }
candle-nn = { version = "=0.11.1", default-features = false }
TOML
cat > "$work/src/main.rs" <<'RUST'
use candle_core::{DType, Device, Result, Tensor};

const LEN: usize = 4096;

/// The sum of a tensor, taken in f32.
fn total(x: &Tensor) -> Result<f32> {
    x.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()
}

fn main() -> Result<()> {
    let mut seen = Vec::new();
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let ones = Tensor::ones((1, LEN), DType::F32, &Device::Cpu)?.to_dtype(dtype)?;
        let sum = total(&ones.sum_all()?)?;
        let softmax = total(&candle_nn::ops::softmax_last_dim(&ones)?)?;
        let matmul = total(&ones.matmul(&ones.t()?)?)?;
        let name = format!("{dtype:?}");
        println!("{name:5} sum of {LEN} ones: {sum:<5} softmax of {LEN} adds up to: {softmax:<3} by matmul: {matmul}");
        seen.push([sum, softmax, matmul]);
    }
    let want = [[256.0, 16.0, 4096.0], [2048.0, 2.0, 4096.0], [4096.0, 1.0, 4096.0]];
    std::process::exit(i32::from(seen != want));
}
RUST
cargo run --quiet --manifest-path "$work/Cargo.toml" --target-dir "$work/target"
