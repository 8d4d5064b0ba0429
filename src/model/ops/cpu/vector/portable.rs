//! A vector as an array, for machines whose instructions are not written out.

use std::array::from_fn;

use super::super::lanes;
use super::{LANES, Lanes};

pub type Register = Lanes;
/// Vectors at work at a time.
pub const REGISTERS: usize = 8;

#[inline(always)]
pub fn splat(value: f32) -> Lanes {
    [value; LANES]
}

#[inline(always)]
pub fn load(lanes: &Lanes) -> Lanes {
    *lanes
}

#[inline(always)]
pub fn store(x: Lanes, lanes: &mut Lanes) {
    *lanes = x;
}

#[inline(always)]
pub fn plus(x: Lanes, y: Lanes) -> Lanes {
    from_fn(|lane| x[lane] + y[lane])
}

#[inline(always)]
pub fn minus(x: Lanes, y: Lanes) -> Lanes {
    from_fn(|lane| x[lane] - y[lane])
}

#[inline(always)]
pub fn times(x: Lanes, y: Lanes) -> Lanes {
    from_fn(|lane| x[lane] * y[lane])
}

#[inline(always)]
pub fn times_plus(x: Lanes, y: Lanes, z: Lanes) -> Lanes {
    from_fn(|lane| lanes::fma(x[lane], y[lane], z[lane]))
}

#[inline(always)]
pub fn larger(x: Lanes, y: Lanes) -> Lanes {
    from_fn(|lane| lanes::larger(x[lane], y[lane]))
}

#[inline(always)]
pub fn total(x: Lanes) -> f32 {
    lanes::total(x)
}

#[inline(always)]
pub fn totals(vectors: [Lanes; 4]) -> [f32; 4] {
    vectors.map(lanes::total)
}

#[inline(always)]
pub fn interleave(x: Lanes, y: Lanes) -> [Lanes; 2] {
    let pick = |i: usize| if i % 2 == 0 { x[i / 2] } else { y[i / 2] };
    [from_fn(pick), from_fn(|i| pick(i + LANES))]
}

#[inline(always)]
pub fn smaller(x: Lanes, y: Lanes) -> Lanes {
    from_fn(|lane| if y[lane] < x[lane] { y[lane] } else { x[lane] })
}

#[inline(always)]
pub fn power_of_two(rounded: Lanes) -> Lanes {
    rounded.map(lanes::power_of_two)
}

#[inline(always)]
pub fn zero_below(x: Lanes, limit: f32, y: Lanes) -> Lanes {
    from_fn(|lane| if x[lane] < limit { 0.0 } else { y[lane] })
}
