-- Files that evaluations start from, named with the search.

ALTER TABLE searches ADD COLUMN base jsonb NOT NULL DEFAULT '[]';
COMMENT ON COLUMN searches.base IS
    'Artifacts that workers lay out before they evaluate; empty: they use the parts they ship.';
