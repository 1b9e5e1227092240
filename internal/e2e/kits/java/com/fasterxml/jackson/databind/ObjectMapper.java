package com.fasterxml.jackson.databind;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.lang.reflect.Field;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.Type;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** JSON of maps, lists, texts, integers and objects with public fields. */
public class ObjectMapper {
    private boolean ordered;

    public ObjectMapper enable(SerializationFeature feature) {
        ordered = feature == SerializationFeature.ORDER_MAP_ENTRIES_BY_KEYS;
        return this;
    }

    public String writeValueAsString(Object value) throws JsonProcessingException {
        StringBuilder b = new StringBuilder();
        write(b, value);
        return b.toString();
    }

    private void write(StringBuilder b, Object value) {
        if (value == null || value instanceof Number) {
            b.append(value);
        } else if (value instanceof String) {
            b.append('"');
            ((String) value).chars().forEach(c -> b.append(c < ' ' || c == '"' || c == '\\' ? String.format("\\u%04x", c) : "" + (char) c));
            b.append('"');
        } else if (value instanceof List) {
            String separator = "[";
            for (Object item : (List<?>) value) {
                b.append(separator);
                write(b, item);
                separator = ",";
            }
            b.append(separator.equals("[") ? "[]" : "]");
        } else if (value instanceof Map) {
            Map<?, ?> map = ordered ? new TreeMap<>((Map<?, ?>) value) : (Map<?, ?>) value;
            String separator = "{";
            for (Map.Entry<?, ?> member : map.entrySet()) {
                b.append(separator);
                write(b, member.getKey());
                b.append(':');
                write(b, member.getValue());
                separator = ",";
            }
            b.append(separator.equals("{") ? "{}" : "}");
        } else {
            Map<String, Object> fields = new TreeMap<>();
            for (Field f : value.getClass().getFields()) {
                try {
                    fields.put(f.getName(), f.get(value));
                } catch (IllegalAccessException e) {
                    throw new IllegalArgumentException(e);
                }
            }
            if (fields.isEmpty()) {
                throw new IllegalArgumentException("no public fields in " + value.getClass());
            }
            write(b, fields);
        }
    }

    // Of the stand-in only: the kit does not read JSON, its host does.

    private String text;
    private int at;

    public static Object read(String json, Type as) throws ReflectiveOperationException {
        ObjectMapper m = new ObjectMapper();
        m.text = json;
        Object value = m.value();
        if (m.at != json.length()) {
            throw new IllegalArgumentException("more than one JSON value: " + json);
        }
        return bind(value, as);
    }

    private static Object bind(Object value, Type as) throws ReflectiveOperationException {
        if (value == null || as == Object.class || as == String.class || as == long.class) {
            return as == String.class ? (String) value : value;
        }
        if (as instanceof ParameterizedType) {
            Type[] of = ((ParameterizedType) as).getActualTypeArguments();
            if (value instanceof List) {
                List<Object> items = new ArrayList<>();
                for (Object item : (List<?>) value) {
                    items.add(bind(item, of[0]));
                }
                return items;
            }
            Map<String, Object> members = new HashMap<>();
            for (Map.Entry<?, ?> member : ((Map<?, ?>) value).entrySet()) {
                members.put((String) member.getKey(), bind(member.getValue(), of[1]));
            }
            return members;
        }
        Object made = ((Class<?>) as).getConstructor().newInstance();
        for (Map.Entry<?, ?> member : ((Map<?, ?>) value).entrySet()) {
            Field f = ((Class<?>) as).getField((String) member.getKey());
            f.set(made, bind(member.getValue(), f.getGenericType()));
        }
        return made;
    }

    private boolean next(char c) {
        while (at < text.length() && Character.isWhitespace(text.charAt(at))) {
            at++;
        }
        if (at == text.length() || text.charAt(at) != c) {
            return false;
        }
        at++;
        return true;
    }

    private void need(char c) {
        if (!next(c)) {
            throw new IllegalArgumentException("no " + c + " at " + at + " in " + text);
        }
    }

    private Object value() {
        if (next('{')) {
            Map<String, Object> members = new HashMap<>();
            while (!next('}')) {
                if (!members.isEmpty()) {
                    need(',');
                }
                need('"');
                String name = string();
                need(':');
                members.put(name, value());
            }
            return members;
        }
        if (next('[')) {
            List<Object> items = new ArrayList<>();
            while (!next(']')) {
                if (!items.isEmpty()) {
                    need(',');
                }
                items.add(value());
            }
            return items;
        }
        if (next('"')) {
            return string();
        }
        int start = at;
        while (at < text.length() && ",]}".indexOf(text.charAt(at)) < 0) {
            at++;
        }
        String word = text.substring(start, at).trim();
        return word.equals("null") ? null : (Object) Long.parseLong(word);
    }

    private String string() {
        StringBuilder b = new StringBuilder();
        for (; text.charAt(at) != '"'; at++) {
            if (text.charAt(at) != '\\') {
                b.append(text.charAt(at));
                continue;
            }
            int known = "\"\\/bfnrt".indexOf(text.charAt(++at));
            if (known >= 0) {
                b.append("\"\\/\b\f\n\r\t".charAt(known));
                continue;
            }
            b.append((char) Integer.parseInt(text.substring(at + 1, at + 5), 16));
            at += 4;
        }
        at++;
        return b.toString();
    }
}
