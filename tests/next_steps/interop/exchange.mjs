// Reads the records that it is given and writes an order in each format, by Confluent's client for JavaScript.
// stdin, as JSON: url, topic, schemas, order, and records by their formats, base64. stdout: what was read and written.
import { readFileSync } from "node:fs";
import { create, createFileRegistry, createMutableRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import * as registry from "@confluentinc/schemaregistry";

const { url, topic, schemas, order, records } = JSON.parse(readFileSync(0, "utf-8"));
const client = new registry.SchemaRegistryClient({ baseURLs: [url] });
const conf = { subjectNameStrategyType: "TOPIC", validate: true };
const value = registry.SerdeType.VALUE;
const deserializers = {
  avro: registry.AvroDeserializer,
  protobuf: registry.ProtobufDeserializer,
  "json-schema": registry.JsonDeserializer,
};
const read = {};
for (const [format, record] of Object.entries(records)) {
  const data = Buffer.from(record, "base64");
  // Into its cache: by itself it asks for a Protobuf schema with format=serialized, which Apicurio 3.3.3 can't answer.
  await client.getBySubjectAndId(`${topic}-value`, data.readInt32BE(1));
  const { order_id, orderId, user, item, quantity } =
    await new deserializers[format](client, value, conf).deserialize(topic, data);
  read[format] = { order_id: order_id ?? orderId, user, item, quantity: Number(quantity) };
}

const subject = (format) => `${topic}-js-${format}`;
async function serialized(format, schemaType, Serializer) {
  await client.register(`${subject(format)}-value`, { schema: schemas[format], schemaType });
  const serializer = new Serializer(client, value, { ...conf, autoRegisterSchemas: false, useLatestVersion: true });
  return serializer.serialize(subject(format), order);
}
const files = createFileRegistry(fromBinary(FileDescriptorSetSchema, Buffer.from(schemas.protobuf, "base64")));
const Order = files.getMessage("orders.Order");
const message = create(Order, { ...order, orderId: order.order_id, quantity: BigInt(order.quantity) });
const ofProtobuf = { ...conf, autoRegisterSchemas: true, registry: createMutableRegistry(Order) };
const written = {
  avro: await serialized("avro", "AVRO", registry.AvroSerializer),
  protobuf: await new registry.ProtobufSerializer(client, value, ofProtobuf).serialize(subject("protobuf"), message),
  "json-schema": await serialized("json-schema", "JSON", registry.JsonSerializer),
};
for (const [format, data] of Object.entries(written)) written[format] = data.toString("base64");
console.log(JSON.stringify({ read, written }));
