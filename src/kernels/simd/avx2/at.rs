//! Byte products of AVX2 with four bytes out of memory, as instructions.
//!
//! Left to itself the compiler broadcasts the bytes of all rows and groups first, long before their products,
//! and keeps them on the stack, which took two to three times as long where few rows are multiplied.

use std::arch::x86_64::*;

use super::I;

/// Makes `name::<AT>(acc, vectors.., x)`: the four bytes `AT` bytes behind `x` are broadcast to `{x1}`, then
/// come these instructions. `{x0}` and `{x1}` are free; a vector's registers have two names.
macro_rules! at {
    (
        $(#[$doc:meta])*
        fn $name:ident($($w:ident: [$low:ident, $high:ident]),*) [$($constant:tt)*] { $($line:literal)* }
    ) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// There are four bytes `AT` bytes behind `x`.
        #[inline]
        #[target_feature(enable = "avx2")]
        pub(super) unsafe fn $name<const AT: usize>(mut acc: I, $($w: I,)* x: *const i8) -> I {
            // SAFETY: it reads these four bytes, and nothing else happens.
            unsafe {
                std::arch::asm!(
                    "vpbroadcastd {x1}, dword ptr [{x} + {at}]",
                    $($line,)*
                    acc0 = inout(ymm_reg) acc[0],
                    acc1 = inout(ymm_reg) acc[1],
                    $($low = in(ymm_reg) $w[0], $high = in(ymm_reg) $w[1],)*
                    $($constant)*
                    x0 = out(ymm_reg) _,
                    x1 = out(ymm_reg) _,
                    x = in(reg) x,
                    at = const AT,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            acc
        }
    };
}

at! {
    /// Of unsigned bytes `w`, in sums of 16 bits.
    fn dot_pairs(w: [w0, w1]) [] {
        "vpmaddubsw {x0}, {w0}, {x1}"
        "vpmaddubsw {x1}, {w1}, {x1}"
        "vpaddw {acc0}, {acc0}, {x0}"
        "vpaddw {acc1}, {acc1}, {x1}"
    }
}

at! {
    /// Of unsigned bytes `w` up to 127.
    fn dot(w: [w0, w1]) [ones = in(ymm_reg) _mm256_set1_epi16(1),] {
        "vpmaddubsw {x0}, {w0}, {x1}"
        "vpmaddubsw {x1}, {w1}, {x1}"
        "vpmaddwd {x0}, {x0}, {ones}"
        "vpmaddwd {x1}, {x1}, {ones}"
        "vpaddd {acc0}, {acc0}, {x0}"
        "vpaddd {acc1}, {acc1}, {x1}"
    }
}

at! {
    /// Of signed bytes `w` of magnitude `size`.
    fn dot_signed(w: [w0, w1], size: [size0, size1]) [ones = in(ymm_reg) _mm256_set1_epi16(1),] {
        "vpsignb {x0}, {x1}, {w0}"
        "vpsignb {x1}, {x1}, {w1}"
        "vpmaddubsw {x0}, {size0}, {x0}"
        "vpmaddubsw {x1}, {size1}, {x1}"
        "vpmaddwd {x0}, {x0}, {ones}"
        "vpmaddwd {x1}, {x1}, {ones}"
        "vpaddd {acc0}, {acc0}, {x0}"
        "vpaddd {acc1}, {acc1}, {x1}"
    }
}
