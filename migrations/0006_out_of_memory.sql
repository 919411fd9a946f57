-- Finalists that turn out too large for their device.

ALTER TABLE candidates ADD COLUMN out_of_memory text;
COMMENT ON COLUMN candidates.out_of_memory IS
    'What the device said when it ran out of memory while the whole was measured; NULL: it did not.';
