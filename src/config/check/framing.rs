//! `[listeners.NAME.framing]`.

use crate::config::diagnostics::ErrorReported;
use crate::config::fault::Fault;
use crate::config::read::Table;
use crate::config::schema::framing::{self as keys, Kind};
use crate::config::schema::{Section, framing};
use crate::config::value::{Size, ValueType};
use crate::framing::{Delimited, Escapes, FRAME_BYTES_MAX, Fixed, Flagged, Framing, LengthPrefixed, Lines, Silence};
use crate::listener::Bind;

/// The framing of a listener, if it has one. What is written of it is read only where there is a stream.
pub(super) fn read(listener: &Table<'_>, bind: Result<Bind, ErrorReported>) -> Result<Option<Framing>, ErrorReported> {
    let Some(item) = listener.item(keys::SECTION.key) else {
        return Ok(None);
    };
    if let Ok(Bind { transport, .. }) = bind
        && transport.has_datagrams()
    {
        return Err(item.fault(Fault::FramedDatagrams { transport }));
    }
    let table = item.table()?;
    let all: [&Section; 6] = [
        &framing::length::SECTION,
        &framing::delimiter::SECTION,
        &framing::fixed::SECTION,
        &framing::line::SECTION,
        &framing::escape::SECTION,
        &framing::gap::SECTION,
    ];
    let kind = table.get(&keys::KIND).inspect_err(|_| {
        table.admit(&all, &[]);
    })?;
    let [length, delimiter, fixed, line, escape, gap] = all;
    let own = match kind {
        Kind::Length => length,
        Kind::Delimiter => delimiter,
        Kind::Fixed => fixed,
        Kind::Line => line,
        Kind::Escape => escape,
        Kind::Gap => gap,
    };
    table.admit(&[own], &all);
    match kind {
        Kind::Length => read_length(&table).map(Framing::Length),
        Kind::Delimiter => read_delimiter(&table).map(Framing::Delimiter),
        Kind::Fixed => table.get(&keys::fixed::SIZE).map(|size| Framing::Fixed(Fixed { size })),
        Kind::Line => {
            let max = table.get(&keys::MAX);
            let deliver = table.get(&keys::line::DELIVER);
            Ok(Framing::Line(Lines { max: max?, deliver: deliver? }))
        }
        Kind::Escape => read_escape(&table).map(Framing::Escape),
        Kind::Gap => {
            let silence = table.get(&keys::gap::SILENCE);
            let max = table.get(&keys::gap::MAX);
            Ok(Framing::Gap(Silence { silence: silence?, max: max? }))
        }
    }
    .map(Some)
}

fn read_length(table: &Table<'_>) -> Result<LengthPrefixed, ErrorReported> {
    let offset = table.get(&keys::length::OFFSET);
    let width = table.get(&keys::length::WIDTH);
    let order = table.get(&keys::length::ORDER);
    let adjust = table.get(&keys::length::ADJUST);
    let max = table.get(&keys::MAX);
    let deliver = table.get(&keys::length::DELIVER);
    let framing = LengthPrefixed {
        offset: offset? as usize,
        width: width?,
        order: order?,
        adjust: adjust?,
        max: max?,
        deliver: deliver?,
    };
    check_max(table, framing.max, framing.min())?;
    Ok(framing)
}

fn read_delimiter(table: &Table<'_>) -> Result<Delimited, ErrorReported> {
    let delimiter = table.get(&keys::delimiter::DELIMITER);
    let max = table.get(&keys::MAX);
    let deliver = table.get(&keys::delimiter::DELIVER);
    let framing = Delimited { delimiter: delimiter?, max: max?, deliver: deliver? };
    check_max(table, framing.max, framing.delimiter.len())?;
    Ok(framing)
}

fn read_escape(table: &Table<'_>) -> Result<Flagged, ErrorReported> {
    let escapes = table.get(&keys::escape::SCHEME);
    let max = table.get(&keys::MAX);
    let deliver = table.get(&keys::escape::DELIVER);
    let framing = Flagged { escapes: escapes?, max: max?, deliver: deliver? };
    check_max(table, framing.max, Escapes::FRAME_BYTES_MIN)?;
    Ok(framing)
}

/// The longest frame has room for what every frame has.
fn check_max(table: &Table<'_>, max: usize, min: usize) -> Result<(), ErrorReported> {
    if max >= min {
        return Ok(());
    }
    let form = Size(min as u64..=FRAME_BYTES_MAX as u64);
    Err(table.fault_at(keys::MAX.name, Fault::OutOfRange { found: form.show(&max), range: form.range() }))
}
