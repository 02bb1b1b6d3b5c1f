//! Records of images, their names, layers, and who stands on these.
//!
//! Plain rows; what they mean is `crate::image`'s business. Functions that take
//! a [`Transaction`] are steps of one that the caller opened, durable or not.

use rusqlite::{
    Connection, OptionalExtension as _, Row, params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};

use super::Transaction;

/// A count as SQLite keeps it: in 63 bits, more is an error.
struct Count(u64);

impl FromSql for Count {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Count> {
        let number = value.as_i64()?;
        u64::try_from(number)
            .map(Count)
            .map_err(|_| FromSqlError::OutOfRange(number))
    }
}

impl ToSql for Count {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let number = i64::try_from(self.0).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        Ok(number.into())
    }
}

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, Count>(column).map(|count| count.0)
}

/// A row of `images` with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    pub id: String,
    pub manifest: String,
    pub size: u64,
    /// Sorted.
    pub names: Vec<String>,
}

/// A row of `layers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRow {
    pub number: u64,
    pub diff_id: String,
    pub variant: String,
    /// Relative paths, each ended by a zero byte.
    pub implied: Vec<u8>,
    pub opaque: bool,
    pub bytes: u64,
    pub inodes: u64,
    /// See `image::seal`; empty: none was made.
    pub seal: Vec<u8>,
}

/// The columns of a [`LayerRow`].
macro_rules! columns {
    () => {
        "number, diff_id, variant, implied, opaque, bytes, inodes, seal"
    };
}

/// All images, by id.
pub fn images(connection: &Connection) -> rusqlite::Result<Vec<ImageRow>> {
    let mut rows = connection.prepare_cached("SELECT id, manifest, size FROM images ORDER BY id")?;
    let mut names =
        connection.prepare_cached("SELECT name FROM image_references WHERE image = ?1 ORDER BY name")?;
    let mut found = Vec::new();
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let names = names
            .query_map([&id], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        found.push(ImageRow {
            id,
            manifest: row.get(1)?,
            size: count(row, 2)?,
            names,
        });
    }
    Ok(found)
}

/// Whether there is an image of this id.
pub fn is_image(connection: &Connection, id: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM images WHERE id = ?1")?
        .exists([id])
}

/// The image that a name stands for, and the digest that it was resolved to.
pub fn reference(connection: &Connection, name: &str) -> rusqlite::Result<Option<(String, String)>> {
    connection
        .prepare_cached("SELECT image, target FROM image_references WHERE name = ?1")?
        .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Points `name` at an image, away from any other.
pub fn set_reference(t: &Transaction<'_>, name: &str, image: &str, target: &str) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO image_references (name, image, target) VALUES (?1, ?2, ?3)
         ON CONFLICT (name) DO UPDATE SET image = excluded.image, target = excluded.target",
    )?
    .execute([name, image, target])?;
    Ok(())
}

/// Inserts an image with its layers, bottom first. One that is there and whole stays as it is.
pub fn insert_image(t: &Transaction<'_>, image: &ImageRow, layers: &[u64]) -> rusqlite::Result<()> {
    let inserted = t
        .prepare_cached(
            "INSERT INTO images (id, manifest, size) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![image.id, image.manifest, Count(image.size)])?;
    if inserted == 0 {
        if !broken_images(t)?.contains(&image.id) {
            return Ok(());
        }
        t.execute("DELETE FROM image_layers WHERE image = ?1", [&image.id])?;
    }
    let mut insert =
        t.prepare_cached("INSERT INTO image_layers (image, position, layer) VALUES (?1, ?2, ?3)")?;
    for (position, layer) in (0i64..).zip(layers) {
        insert.execute(params![image.id, position, Count(*layer)])?;
    }
    Ok(())
}

/// Deletes names of images.
pub fn delete_references(t: &Transaction<'_>, names: &[String]) -> rusqlite::Result<()> {
    let mut delete = t.prepare_cached("DELETE FROM image_references WHERE name = ?1")?;
    for name in names {
        delete.execute([name])?;
    }
    Ok(())
}

/// Deletes an image that has no name left; its layers stay for [`unused_layers`].
pub fn delete_unnamed(t: &Transaction<'_>, id: &str) -> rusqlite::Result<()> {
    t.execute(
        "DELETE FROM images WHERE id = ?1
         AND NOT EXISTS (SELECT 1 FROM image_references WHERE image = ?1)",
        [id],
    )?;
    Ok(())
}

fn layer(row: &Row<'_>) -> rusqlite::Result<LayerRow> {
    Ok(LayerRow {
        number: count(row, 0)?,
        diff_id: row.get(1)?,
        variant: row.get(2)?,
        implied: row.get(3)?,
        opaque: row.get(4)?,
        bytes: count(row, 5)?,
        inodes: count(row, 6)?,
        seal: row.get(7)?,
    })
}

/// The variants of a layer that are not broken, oldest first.
pub fn layers_of(connection: &Connection, diff_id: &str) -> rusqlite::Result<Vec<LayerRow>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            columns!(),
            " FROM layers WHERE diff_id = ?1 AND NOT broken ORDER BY number",
        ))?
        .query_map([diff_id], layer)?
        .collect()
}

/// The layers of an image, bottom first.
pub fn image_layers(connection: &Connection, image: &str) -> rusqlite::Result<Vec<LayerRow>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            columns!(),
            " FROM image_layers JOIN layers ON number = layer WHERE image = ?1 ORDER BY position",
        ))?
        .query_map([image], layer)?
        .collect()
}

/// Numbers of an image's layers, top first, and whether each hides all that is below it.
pub fn layer_stack(connection: &Connection, image: &str) -> rusqlite::Result<Vec<(u64, bool)>> {
    connection
        .prepare_cached(
            "SELECT number, opaque FROM image_layers JOIN layers ON number = layer
             WHERE image = ?1 ORDER BY position DESC",
        )?
        .query_map([image], |row| Ok((count(row, 0)?, row.get(1)?)))?
        .collect()
}

pub fn insert_layer(t: &Transaction<'_>, layer: &LayerRow) -> rusqlite::Result<()> {
    t.prepare_cached(concat!(
        "INSERT INTO layers (",
        columns!(),
        ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    ))?
    .execute(params![
        Count(layer.number),
        layer.diff_id,
        layer.variant,
        layer.implied,
        layer.opaque,
        Count(layer.bytes),
        Count(layer.inodes),
        layer.seal,
    ])?;
    Ok(())
}

/// A layer that is not broken.
pub fn whole_layer(connection: &Connection, number: u64) -> rusqlite::Result<Option<LayerRow>> {
    connection
        .prepare_cached(concat!(
            "SELECT ",
            columns!(),
            " FROM layers WHERE number = ?1 AND NOT broken",
        ))?
        .query_row([Count(number)], layer)
        .optional()
}

/// Numbers of the layers that are not broken.
pub fn whole_layers(connection: &Connection) -> rusqlite::Result<Vec<u64>> {
    connection
        .prepare_cached("SELECT number FROM layers WHERE NOT broken ORDER BY number")?
        .query_map([], |row| count(row, 0))?
        .collect()
}

pub fn set_seal(t: &Transaction<'_>, number: u64, seal: &[u8]) -> rusqlite::Result<()> {
    t.execute(
        "UPDATE layers SET seal = ?2 WHERE number = ?1",
        params![Count(number), seal],
    )?;
    Ok(())
}

/// False: there is no such layer.
pub fn set_broken(t: &Transaction<'_>, number: u64) -> rusqlite::Result<bool> {
    Ok(t.execute("UPDATE layers SET broken = 1 WHERE number = ?1", [Count(number)])? > 0)
}

/// Ids of the images that stand on a broken layer.
pub fn broken_images(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare_cached("SELECT DISTINCT image FROM image_layers JOIN layers ON number = layer WHERE broken")?
        .query_map([], |row| row.get(0))?
        .collect()
}

/// Images and the layers that they stand on.
pub fn stands_on(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    connection
        .prepare_cached("SELECT image, layer FROM image_layers")?
        .query_map([], |row| Ok((row.get(0)?, count(row, 1)?)))?
        .collect()
}

/// Deletes images with their names; their layers stay for [`unused_layers`].
pub fn delete_images(t: &Transaction<'_>, ids: &[String]) -> rusqlite::Result<()> {
    let mut delete = t.prepare_cached("DELETE FROM images WHERE id = ?1")?;
    for id in ids {
        delete.execute([id])?;
    }
    Ok(())
}

/// Numbers of all layers.
pub fn layer_numbers(connection: &Connection) -> rusqlite::Result<Vec<u64>> {
    connection
        .prepare_cached("SELECT number FROM layers ORDER BY number")?
        .query_map([], |row| count(row, 0))?
        .collect()
}

/// Layers of no image and under no container: number and diff id.
pub fn unused_layers(connection: &Connection) -> rusqlite::Result<Vec<(u64, String)>> {
    connection
        .prepare_cached(
            "SELECT number, diff_id FROM layers
             WHERE NOT EXISTS (SELECT 1 FROM image_layers WHERE layer = number)
               AND NOT EXISTS (SELECT 1 FROM layer_uses WHERE layer = number)",
        )?
        .query_map([], |row| Ok((count(row, 0)?, row.get(1)?)))?
        .collect()
}

pub fn delete_layer(t: &Transaction<'_>, number: u64) -> rusqlite::Result<()> {
    t.prepare_cached("DELETE FROM layers WHERE number = ?1")?
        .execute([Count(number)])?;
    Ok(())
}

/// Bytes and inodes of all layers.
pub fn usage(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    connection.query_row(
        "SELECT coalesce(sum(bytes), 0), coalesce(sum(inodes), 0) FROM layers",
        [],
        |row| Ok((count(row, 0)?, count(row, 1)?)),
    )
}

pub fn insert_use(t: &Transaction<'_>, container: &str, layer: u64) -> rusqlite::Result<()> {
    t.prepare_cached("INSERT INTO layer_uses (container, layer) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![container, Count(layer)])?;
    Ok(())
}

/// The container holds no layer any more. Whether there is one that nobody holds then.
pub fn delete_uses(t: &Transaction<'_>, container: &str) -> rusqlite::Result<bool> {
    let last = t
        .prepare_cached(
            "SELECT 1 FROM layer_uses AS mine WHERE container = ?1
               AND NOT EXISTS (SELECT 1 FROM image_layers WHERE layer = mine.layer)
               AND NOT EXISTS (SELECT 1 FROM layer_uses WHERE layer = mine.layer AND container <> ?1)",
        )?
        .exists([container])?;
    t.prepare_cached("DELETE FROM layer_uses WHERE container = ?1")?
        .execute([container])?;
    Ok(last)
}

/// The containers that hold layers.
pub fn users(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare_cached("SELECT DISTINCT container FROM layer_uses ORDER BY container")?
        .query_map([], |row| row.get(0))?
        .collect()
}
