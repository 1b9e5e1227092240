package com.fasterxml.jackson.databind;

public enum SerializationFeature { ORDER_MAP_ENTRIES_BY_KEYS }
