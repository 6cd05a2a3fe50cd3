"""Operations that mixers share: one file each, or a folder where one has several forms."""
