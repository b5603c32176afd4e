//! Tiers of CPU instructions: one source, compiled once a tier.
//!
//! A kernel is an `#[inline(always)]` function over [`lanes`](super::lanes), generic over [`Tier`]. The
//! macro [`tiered!`] compiles it inside a function for each tier and picks one by an [`Isa`], which can only
//! be had when the machine has those instructions. Every tier does the same arithmetic with fused
//! multiply-add in the same order, so all tiers agree to the last bit; `scalar` is the oracle. (On x86
//! before FMA, the fused step is a library call: right, and slow.)

use crate::error::{Error, Result};

/// What a kernel may know of its tier at compile time: how many vectors of 16 floats stay in registers.
pub(super) trait Tier {
    /// 32 registers of 16 floats (as opposed to 16 of 8, or less).
    const WIDE: bool;
}

pub(super) struct Narrow;
pub(super) struct Wide;

impl Tier for Narrow {
    const WIDE: bool = false;
}

impl Tier for Wide {
    const WIDE: bool = true;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// What every machine of this architecture has (NEON on aarch64).
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A tier that this machine has: holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

impl Isa {
    /// The tiers of this machine, the best one first.
    pub fn available() -> Vec<Isa> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            if avx2 && avx512 {
                tiers.push(Isa(Level::Avx512));
            }
            if avx2 {
                tiers.push(Isa(Level::Avx2));
            }
        }
        tiers.push(Isa(Level::Scalar));
        tiers
    }

    /// The best tier, or the one that `TALLOW_ISA` names.
    ///
    /// # Errors
    /// `Device` when it names none, or one that this machine has not.
    pub fn from_env() -> Result<Isa> {
        match std::env::var("TALLOW_ISA") {
            Ok(name) => Self::named(&name).map_err(|error| error.context("TALLOW_ISA")),
            Err(_) => Ok(Self::available().first().copied().unwrap_or(Isa(Level::Scalar))),
        }
    }

    /// A tier by name: `avx512`, `avx2` or `scalar`.
    ///
    /// # Errors
    /// `Device` when it is none of this machine's.
    pub fn named(name: &str) -> Result<Isa> {
        let tiers = Self::available();
        tiers.iter().copied().find(|tier| tier.name() == name).ok_or_else(|| {
            let names: Vec<_> = tiers.iter().map(|tier| tier.name()).collect();
            Error::device(format!(
                "{name:?} is not among this machine's instruction tiers: {}",
                names.join(", ")
            ))
        })
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    pub(super) fn level(self) -> Level {
        self.0
    }
}

/// `tiered! { fn name(a: A, b: B) = body; }` makes `name(isa, a, b)`, which runs `body::<Tier>(a, b)`
/// compiled for the tier.
macro_rules! tiered {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident;) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::kernels::isa::Isa, $($arg: $ty),*) {
            use $crate::kernels::isa::{Level, Narrow};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            fn avx512($($arg: $ty),*) {
                $body::<$crate::kernels::isa::Wide>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) {
                $body::<Narrow>($($arg),*)
            }
            match isa.level() {
                Level::Scalar => $body::<Narrow>($($arg),*),
                // SAFETY: an `Isa` of this level exists only where the machine has these features.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(super) use tiered;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_tier_is_had_only_by_its_name() {
        for tier in Isa::available() {
            assert_eq!(Isa::named(tier.name()).unwrap(), tier);
        }
        let error = Isa::named("avx9000").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.message().contains("scalar"), "{error}");
    }
}
