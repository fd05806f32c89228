//! Lists with categories, and how `continue` changes `start`.
//!
//! ```text
//!  accepted            `x`   `[x, y]`   `{50-platform: [x], 90-mine: y}`   `{categories: {…}, uncategorised: […]}`
//!  order of items      categories sorted by the bytes of their names, then the uncategorised
//!  order of look-up    the uncategorised, then the categories sorted; the first that matches wins
//!  merged              a category the update names is replaced whole (an empty list empties it); the others stay;
//!                      the uncategorised are replaced when the update has some
//! ```
//! Everything else of a deployment is replaced where the update has something, mappings key by key; so nothing that
//! is empty, zero or false in `continue` ever clears what `start` said. That is CI-tron's rule.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::description::{
    ArtifactKeys, DeploymentDescription, ImagestoreKeys, KernelKeys, PublicStoreKeys, StorageKeys,
};
use crate::job::Fastboot;

/// A list whose items may be grouped, so that a platform's defaults can be replaced group by group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Collection<T> {
    pub(crate) categories: BTreeMap<String, Vec<T>>,
    pub(crate) uncategorised: Vec<T>,
}

impl<T> Default for Collection<T> {
    fn default() -> Self {
        Collection { categories: BTreeMap::new(), uncategorised: Vec::new() }
    }
}

impl<T> Collection<T> {
    /// The items in the order they are put together.
    pub(crate) fn into_items(self) -> Vec<T> {
        self.categories.into_values().flatten().chain(self.uncategorised).collect()
    }

    /// The items in the order a request looks for its match.
    pub(crate) fn into_lookup(self) -> Vec<T> {
        self.uncategorised.into_iter().chain(self.categories.into_values().flatten()).collect()
    }

    fn update(&mut self, update: Collection<T>) {
        self.categories.extend(update.categories);
        if !update.uncategorised.is_empty() {
            self.uncategorised = update.uncategorised;
        }
    }
}

impl<T: JsonSchema> JsonSchema for Collection<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Collection_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = generator.subschema_for::<T>();
        json_schema!({
            "x-form": "collection",
            "x-item": item,
            "description": "An item, a list, or lists by category.",
            "anyOf": [item, {"type": ["array", "object", "null"]}],
        })
    }
}

/// One item, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct OneOrList<T>(pub(crate) Vec<T>);

impl<T> Default for OneOrList<T> {
    fn default() -> Self {
        OneOrList(Vec::new())
    }
}

impl<T: JsonSchema> JsonSchema for OneOrList<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("One_or_list_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = generator.subschema_for::<T>();
        json_schema!({"x-form": "one-or-list", "x-item": item, "anyOf": [item, {"type": ["array", "null"]}]})
    }
}

/// A list of named items, or a mapping of names to items.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Named<T>(pub(crate) Vec<T>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Named_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let item = generator.subschema_for::<T>();
        json_schema!({"x-form": "named", "x-item": item, "anyOf": [{"type": "array", "items": item}, {"type": "object"}]})
    }
}

/// What a named item is called.
pub(crate) trait HasName {
    fn name(&self) -> &str;
}

impl<T: HasName> Named<T> {
    fn update(&mut self, update: Named<T>) {
        for item in update.0 {
            match self.0.iter_mut().find(|known| known.name() == item.name()) {
                Some(known) => *known = item,
                None => self.0.push(item),
            }
        }
    }
}

impl DeploymentDescription {
    /// `start` with the changes of `continue`.
    pub(crate) fn updated(mut self, update: DeploymentDescription) -> DeploymentDescription {
        match (&mut self.kernel, update.kernel) {
            (Some(kernel), Some(update)) => kernel.update(update),
            (kernel, update) => *kernel = kernel.take().or(update),
        }
        update_collection(&mut self.initramfs, update.initramfs);
        update_collection(&mut self.dtb, update.dtb);
        update_collection(&mut self.dhcp, update.dhcp);
        match (&mut self.storage, update.storage) {
            (Some(storage), Some(update)) => storage.update(update),
            (storage, update) => *storage = storage.take().or(update),
        }
        match (&mut self.fastboot, update.fastboot) {
            (Some(fastboot), Some(update)) => fastboot.update(update),
            (fastboot, update) => *fastboot = fastboot.take().or(update),
        }
        self
    }
}

impl KernelKeys {
    fn update(&mut self, update: KernelKeys) {
        self.artifact.update(update.artifact);
        update_collection(&mut self.cmdline, update.cmdline);
    }
}

impl ArtifactKeys {
    /// A source replaces the source, of whatever kind: two would exclude each other.
    fn update(&mut self, update: ArtifactKeys) {
        let truthy = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if truthy(&update.url) || truthy(&update.data) || truthy(&update.attached) || update.archive.is_some() {
            let format = std::mem::take(&mut self.format);
            *self = ArtifactKeys { format, ..update.clone() };
        }
        if !update.format.0.is_empty() {
            self.format = update.format;
        }
    }
}

impl StorageKeys {
    fn update(&mut self, update: StorageKeys) {
        update_collection(&mut self.http, update.http);
        update_collection(&mut self.tftp, update.tftp);
        self.nbd.update(update.nbd);
        self.nfs.update(update.nfs);
        self.s3.update(update.s3);
        let more = update.imagestore.and_then(|store| store.public).map(|public| public.images).unwrap_or_default();
        if !more.is_empty() {
            let store = self.imagestore.get_or_insert_with(ImagestoreKeys::default);
            store.public.get_or_insert_with(PublicStoreKeys::default).images.extend(more);
        }
    }
}

impl Fastboot {
    fn update(&mut self, update: Fastboot) {
        fn replace<T>(value: &mut Option<T>, update: Option<T>) {
            if update.is_some() {
                *value = update;
            }
        }
        let text = |update: Option<String>| update.filter(|text| !text.is_empty());
        replace(&mut self.header_version, update.header_version);
        replace(&mut self.base, update.base);
        replace(&mut self.kernel_offset, update.kernel_offset);
        replace(&mut self.ramdisk_offset, update.ramdisk_offset);
        replace(&mut self.dtb_offset, update.dtb_offset);
        replace(&mut self.tags_offset, update.tags_offset);
        replace(&mut self.board, text(update.board));
        replace(&mut self.pagesize, update.pagesize);
        replace(&mut self.os_version, text(update.os_version));
        replace(&mut self.os_patch_level, text(update.os_patch_level));
        replace(&mut self.boot_image, update.boot_image);
    }
}

fn update_collection<T>(collection: &mut Option<Collection<T>>, update: Option<Collection<T>>) {
    match (collection, update) {
        (Some(collection), Some(update)) => collection.update(update),
        (collection @ None, update) => *collection = update,
        (Some(_), None) => {}
    }
}
