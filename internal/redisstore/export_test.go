package redisstore

// Bounded is the connection to Redis on which large values are replaced, for the tests.
var Bounded = bounded

// MaxValue is the size above which they are.
const MaxValue = maxValue
