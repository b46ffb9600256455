// Names by content and by place in the source, not by folder: the same build anywhere, so that CI can compare.
module.exports = { optimization: { moduleIds: "natural", chunkIds: "named" } };
