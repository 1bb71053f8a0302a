//! The node's network in throwaway network namespaces, looked at with `ip`, `bridge` and `nft`.

mod apply;
mod foreign;
mod guard;
mod idle;
mod lab;
mod overlay;
mod repair;
mod services;
mod upkeep;
