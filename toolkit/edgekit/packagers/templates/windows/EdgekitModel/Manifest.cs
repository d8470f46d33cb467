using System.Security.Cryptography;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace EdgekitModel;

/// <summary>What a loader needs of edgekit.json.</summary>
internal sealed record Manifest(
    [property: JsonPropertyName("format")] string Format,
    [property: JsonPropertyName("version")] int Version,
    [property: JsonPropertyName("context")] ContextInfo Context,
    [property: JsonPropertyName("tokens")] TokenInfo Tokens,
    [property: JsonPropertyName("chat_template")] string? ChatTemplate,
    [property: JsonPropertyName("conformance")] Conformance Conformance,
    [property: JsonPropertyName("files")] Dictionary<string, FileEntry> Files)
{
    /// <summary>Reads the manifest of an artifact and compares every file with its sha256.</summary>
    public static Manifest Open(string directory)
    {
        var path = Path.Combine(directory, "edgekit.json");
        var manifest = JsonSerializer.Deserialize<Manifest>(File.ReadAllText(path))
            ?? throw new InvalidDataException($"{path} is empty; copy the package again");
        if (manifest.Format != "edgekit" || manifest.Version != 1)
        {
            throw new InvalidDataException($"{path} is no manifest of version 1; make the package again");
        }
        foreach (var (name, entry) in manifest.Files)
        {
            using var file = File.OpenRead(Path.Combine(directory, name));
            var digest = Convert.ToHexString(SHA256.HashData(file)).ToLowerInvariant();
            if (file.Length != entry.Bytes || digest != entry.Sha256)
            {
                throw new InvalidDataException($"{name} is not what was packaged: its sha256 differs; copy the package again");
            }
        }
        return manifest;
    }
}

internal sealed record ContextInfo(
    [property: JsonPropertyName("length")] int Length,
    [property: JsonPropertyName("rope_switch")] int? RopeSwitch);

internal sealed record TokenInfo([property: JsonPropertyName("stop")] int[] Stop);

internal sealed record FileEntry(
    [property: JsonPropertyName("bytes")] long Bytes,
    [property: JsonPropertyName("sha256")] string Sha256);

internal sealed record Conformance(
    [property: JsonPropertyName("encode")] EncodeVector[] Encode,
    [property: JsonPropertyName("chat")] ChatVector[] Chat);

internal sealed record EncodeVector(
    [property: JsonPropertyName("text")] string Text,
    [property: JsonPropertyName("ids")] int[] Ids);

internal sealed record ChatVector(
    [property: JsonPropertyName("messages")] Message[] Messages,
    [property: JsonPropertyName("rendered")] string Rendered);
