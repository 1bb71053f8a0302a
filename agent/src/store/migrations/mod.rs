//! How a store of an earlier schema becomes one of the present.
//!
//! Each step is a file of its own in this folder, named for what it leads to (`to_2.rs`), and turns the rows of
//! one schema into changes; all steps that a store needs and its new number are made in one transaction, so a
//! store is of one schema or of another. A step stays for ever. There is none yet: [`SCHEMA`] is the first.

use super::{Change, Store, StoreError, Table, file};

/// The schema that this program reads and writes.
pub(super) const SCHEMA: u32 = 1;

const KEY: &str = "schema";

/// A step from the schema before: what has to change in the store.
type Step = fn(&Store) -> Result<Vec<Change>, StoreError>;

/// The step to each schema above the first, in order.
const STEPS: [Step; SCHEMA as usize - 1] = [];

/// What makes an empty file a store.
pub(super) fn first() -> Vec<Change> {
    vec![number(SCHEMA)]
}

/// Brings the store to the present schema.
///
/// # Errors
/// The store is of a later schema or of none.
pub(super) fn run(store: &Store) -> Result<(), StoreError> {
    let rows = store.read(Table::Meta)?;
    let found = rows.iter().find(|(key, _)| key == KEY).map(|(_, value)| value.as_slice());
    let found: u32 = found
        .and_then(|value| serde_json::from_slice(value).ok())
        .filter(|found| *found > 0)
        .ok_or_else(|| file::damaged(&store.place, &"it does not say which schema it has"))?;
    if found > SCHEMA {
        return Err(StoreError::TooNew { path: store.place.path(), found, known: SCHEMA });
    }
    for (step, schema) in STEPS.iter().zip(2..).skip(found as usize - 1) {
        let mut changes = step(store)?;
        changes.push(number(schema));
        store.apply(changes)?;
        tracing::info!(schema, "the store was brought to a newer schema");
    }
    Ok(())
}

pub(super) fn number(schema: u32) -> Change {
    Change { table: Table::Meta, key: KEY.to_owned(), value: Some(schema.to_string().into_bytes()) }
}
