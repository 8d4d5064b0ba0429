//! Proofs that need more than one module: packing changes nothing, and the reference's run is ours.

mod lntuning;
mod packing;
