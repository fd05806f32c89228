//! Farms of others as farms of ours: what `wharf import` reads and makes. No file is opened and none is written here. ◆

pub mod ci_tron;
mod table;
